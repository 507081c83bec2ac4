//! The documentation tells the same story as the code.

use std::fs;

use aura_whatsapp_operator::{
    api::{Delivering, conditions::Reason},
    config::Installation,
};

use crate::support::project;

fn read(path: &str) -> String {
    fs::read_to_string(project().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_reason_has_a_row_that_says_whether_it_stalls() {
    let page = read("docs/reasons.md");
    for reason in Reason::ALL {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `{reason}` |")))
            .unwrap_or_else(|| panic!("docs/reasons.md has no row for {reason}"));
        assert_eq!(row.contains("| yes |"), reason.is_stalled(), "{row}");
    }
}

#[test]
fn every_reason_of_delivering_has_a_row_with_its_status() {
    let page = read("docs/reasons.md");
    let rows: Vec<&str> = Delivering::ALL
        .iter()
        .map(|one| {
            let start = format!("| `{one}` | {} |", one.status());
            let row = page.lines().find(|line| line.starts_with(&start));
            row.unwrap_or_else(|| panic!("docs/reasons.md has no row {start}"))
        })
        .collect();
    let order = rows.iter().map(|row| page.find(row));
    assert!(order.is_sorted(), "the first that is so is told");
}

/// A reason that no test with a real cluster brings about could be one that nothing brings about.
#[test]
fn every_reason_is_brought_about_by_a_test() {
    let tests: String = sources("tests/it")
        .into_iter()
        .filter(|(path, _)| !path.ends_with("docs.rs"))
        .map(|(_, text)| text)
        .collect();
    for reason in Reason::ALL {
        let (variant, word) = (format!("Reason::{reason}"), format!("\"{reason}\""));
        assert!(
            tests.contains(&variant) || tests.contains(&word),
            "no test is about {reason}"
        );
    }
}

#[test]
fn the_documented_configuration_is_one() {
    let page = read("docs/configuration.md");
    let example = page
        .split("```yaml")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap()
        .replace('…', "x");
    let installation =
        Installation::parse(&example, "docs/configuration.md").unwrap_or_else(|error| panic!("{error}"));
    let mut defaults = installation.clone();
    defaults.bridge = aura_whatsapp_operator::config::BridgeLimits::default();
    assert_eq!(
        installation.bridge, defaults.bridge,
        "the page shows the defaults"
    );
    let environment = &installation.environments["es-pro"];
    assert_eq!(
        environment.registration,
        aura_whatsapp_operator::config::Registration::default()
    );
}

/// What a link to a heading names it by.
fn anchor(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut pages = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned()];
    for entry in fs::read_dir(project().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            pages.push(path.strip_prefix(project()).unwrap().display().to_string());
        }
    }
    let mut followed = 0;
    for page in pages {
        let text = read(&page);
        let folder = project().join(&page).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !link.contains("://") {
                let (file, heading) = link.split_once('#').unwrap_or((link, ""));
                let file = if file.is_empty() {
                    project().join(&page)
                } else {
                    folder.join(file)
                };
                assert!(file.exists(), "{page} links to {link}");
                if !heading.is_empty() {
                    let target = fs::read_to_string(&file).unwrap();
                    let found = target
                        .lines()
                        .any(|line| anchor(line).as_deref() == Some(heading));
                    assert!(found, "{page} links to {link}");
                }
                followed += 1;
            }
        }
    }
    assert!(followed > 8);
}

#[test]
fn every_metric_is_documented() {
    let (source, of_channels) = (
        read("src/telemetry/metrics.rs"),
        read("src/controller/collector.rs"),
    );
    let page = read("docs/operations.md");
    let named = |text: &'static str, call: &str| -> Vec<String> {
        text.split(call)
            .skip(1)
            .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
            .map(ToOwned::to_owned)
            .collect()
    };
    let mut names = named(source.leak(), ".register(");
    names.extend(named(of_channels.leak(), ".encode_descriptor("));
    names.retain(|name| name != "build");
    assert!(names.len() >= 20, "{names:?}");
    for name in names {
        assert!(
            page.contains(&format!("aura_whatsapp_{name}")),
            "docs/operations.md does not tell of {name}"
        );
    }
}

/// Every Rust file below a folder of the project: its path there, and its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(project().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(project()).unwrap().display().to_string();
        if path.is_dir() {
            found.extend(sources(&name));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = read(&name);
            found.push((name, text));
        }
    }
    found
}

/// Whether there is a test of this name, `module::function`. Unit tests may stand in a file beside their module's, so
/// its path need only begin as the first two modules do.
fn exists(test: &str, files: &[(String, String)]) -> bool {
    let Some((modules, function)) = test.rsplit_once("::") else {
        return false;
    };
    let modules: Vec<&str> = modules
        .split("::")
        .take_while(|module| !["tests", "properties"].contains(module))
        .take(2)
        .collect();
    let (path, function) = (modules.join("/"), format!("fn {function}("));
    files.iter().any(|(file, text)| {
        let below = file
            .strip_prefix("tests/it/")
            .or_else(|| file.strip_prefix("src/"));
        below.is_some_and(|below| below.starts_with(&path)) && text.contains(&function)
    })
}

/// The numbers of a page's rows that begin with `prefix`, in order. Each row has four cells, and names in the last one
/// tests that are there.
fn rows(page: &str, prefix: &str) -> Vec<String> {
    let page = read(page);
    let files = [sources("tests/it"), sources("src")].concat();
    let mut numbers = Vec::new();
    let is_row = |line: &&str| {
        line.strip_prefix("| ")
            .and_then(|rest| rest.strip_prefix(prefix))
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    for row in page.lines().filter(is_row) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [number, suffered, answer, shown] = cells[..] else {
            panic!("not four cells: {row}");
        };
        assert!(!suffered.is_empty() && !answer.is_empty(), "{row}");
        let tests: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        for test in &tests {
            assert!(
                exists(test, &files),
                "{number} names a test that is not there: {test}"
            );
        }
        assert!(!tests.is_empty(), "no test shows it: {row}");
        numbers.push(number.to_owned());
    }
    numbers
}

#[test]
fn every_lesson_has_its_answer_and_a_test_that_exists() {
    let all: Vec<String> = (1..=34).map(|number| format!("B{number}")).collect();
    assert_eq!(rows("docs/lessons.md", "B"), all, "each once, in order");
}

#[test]
fn every_case_has_its_answer_and_a_test_that_exists() {
    let numbers: Vec<u32> = rows("docs/cases.md", "")
        .iter()
        .map(|number| number.parse().unwrap())
        .collect();
    assert!(
        numbers.is_sorted_by(|a, b| a < b),
        "each once, in order: {numbers:?}"
    );
    for number in 1..=43 {
        assert!(numbers.contains(&number), "case {number} has no row");
    }
}

/// The tables of the journal's formats stand in the code, where they are kept true, and in the page for people.
#[test]
fn the_bytes_of_the_journal_are_those_of_the_code() {
    let read =
        |path: &str| std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let page = read("docs/journal-format.md");
    for path in [
        "src/journal/format.rs",
        "src/journal/keyring.rs",
        "src/journal/ids/format.rs",
    ] {
        let source = read(path);
        let table: Vec<&str> = source
            .lines()
            .skip_while(|line| *line != "//! ```text")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| {
                line.trim_start_matches("//!")
                    .strip_prefix(' ')
                    .unwrap_or_default()
            })
            .collect();
        assert!(table.len() > 5, "{path} has a table");
        assert!(
            page.contains(&table.join("\n")),
            "docs/journal-format.md has not the table of {path}"
        );
    }
}
