//! `import`: wires the making of manifests of Aura's channel documents, and writes them.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use secrecy::ExposeSecret;

use super::{output::exit, sources::Sources};
use crate::{
    api::WebhookMode,
    import::{self, Imported, NameTemplate, Options, Outcome, SecretForm, Store},
    words::{counted, printable},
};

#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Import {
    /// Files with a channel document, a JSON array of them or one after the other (NDJSON), or - for standard input
    #[arg(required = true, value_name = "FILE|-")]
    files: Vec<PathBuf>,
    /// The environment of the channels; without it the `environment` that a document names
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// The namespace of the manifests; without it they name none
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// How the resources are called: {name}, {prefix}, {number} and {channelId} are filled in; without it by the
    /// first of these that a document has
    #[arg(long, value_name = "TEMPLATE")]
    name_template: Option<NameTemplate>,
    /// Webhook mode of the channels; Observe changes nothing at Kernel and says what would change
    #[arg(long, value_enum, ignore_case = true, default_value = "Observe")]
    mode: Mode,
    /// Where the manifests are written: NAME.yaml and NAME-secret.yaml; without it to stdout
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Overwrite what is in the way
    #[arg(long, requires = "out")]
    force: bool,
    /// What becomes of the credentials [default: plain with --out, else none]
    #[arg(long, value_enum)]
    secrets: Option<SecretForm>,
    /// The store that an ExternalSecret fetches from
    #[arg(long, value_name = "NAME", required_if_eq("secrets", "external-secret"))]
    secret_store: Option<String>,
    /// The store's kind
    #[arg(long, value_name = "KIND", default_value = "ClusterSecretStore", value_parser = ["SecretStore", "ClusterSecretStore"])]
    secret_store_kind: String,
    /// The store's entry, with the properties id and secret: {secret}, {namespace} and {channelId} are filled in
    #[arg(long, value_name = "TEMPLATE", default_value = "{secret}")]
    secret_store_key: String,
    /// Allow plain Secrets on stdout; twice: on a terminal too
    #[arg(long, action = clap::ArgAction::Count)]
    print_secrets: u8,
    /// Write nothing at all if there is an error or a warning
    #[arg(long)]
    strict: bool,
}

const EXAMPLES: &str = "\
Every manifest has passed `validate`. What was not taken over is listed on stderr.

Exit status:
  0  every document was taken over (and with --strict without a warning)
  1  at least one document was not
  2  nothing could be done: an unreadable file, a command line that can't be understood

Examples:
  Look first; no secret is printed:
    aura-whatsapp-operator import --environment es-pro --namespace aura-es channels.json
  Write manifests and Secrets (mode 0600), then judge all of them:
    aura-whatsapp-operator import --environment es-pro --namespace aura-es --out channels/ channels.json
    aura-whatsapp-operator validate --require-secrets channels/
  For a repository: no values in files, fetched by the External Secrets Operator instead:
    aura-whatsapp-operator import --environment es-pro --namespace aura-es --out channels/ \\
      --secrets external-secret --secret-store vault --secret-store-key aura/{channelId} channels.json
  Seal what is printed, without a plain file in between:
    aura-whatsapp-operator import --environment es-pro --namespace aura-es --secrets plain --print-secrets shop.json |
      kubeseal --format yaml";

/// The words of `spec.webhook.mode`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
enum Mode {
    Observe,
    Manage,
    Legacy,
}

impl Import {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        let sources = Sources::read(&self.files);
        for problem in &sources.unreadable {
            tell("error", &format!("{}: {}", problem.file, problem.message))?;
        }
        let outcome = import::import(&sources.read, &self.options()?)?;
        let mut failed = outcome.errors.len();
        let strictly = failed + outcome.warnings.len() + sources.unreadable.len();
        let mut written = 0;
        let mut folder = self.out.as_deref().map(|path| Folder::new(path, self.force));
        if !self.strict || strictly == 0 {
            for channel in &outcome.channels {
                let result = match &mut folder {
                    Some(folder) => folder.write(channel),
                    None => print(channel),
                };
                match result {
                    Ok(()) => written += 1,
                    Err(error) => {
                        failed += 1;
                        tell("error", &format!("{}: {error:#}", channel.name))?;
                    }
                }
            }
        }
        summary(&outcome, written)?;
        let failed = failed > 0 || self.strict && strictly > 0;
        Ok(exit(failed, !sources.unreadable.is_empty()))
    }

    fn options(&self) -> anyhow::Result<Options> {
        let default = if self.out.is_some() {
            SecretForm::Plain
        } else {
            SecretForm::None
        };
        let secrets = self.secrets.unwrap_or(default);
        if secrets == SecretForm::Plain && self.out.is_none() {
            may_print(self.print_secrets, io::stdout().is_terminal())?;
        }
        Ok(Options {
            environment: self.environment.clone(),
            namespace: self.namespace.clone(),
            name: self.name_template.clone(),
            mode: match self.mode {
                Mode::Observe => WebhookMode::Observe,
                Mode::Manage => WebhookMode::Manage,
                Mode::Legacy => WebhookMode::Legacy,
            },
            secrets,
            store: self.secret_store.as_ref().map(|name| Store {
                name: name.clone(),
                kind: self.secret_store_kind.clone(),
                key: self.secret_store_key.clone(),
            }),
        })
    }
}

/// Whether plain Secrets may go to stdout: asked for once where nobody watches, twice on a terminal, whose lines are
/// seen and kept.
fn may_print(asked: u8, terminal: bool) -> anyhow::Result<()> {
    match (asked, terminal) {
        (0, _) => {
            bail!("plain Secrets go to files: name a folder with --out, or allow stdout with --print-secrets")
        }
        (1, true) => {
            bail!("this would show credentials on a terminal: give --print-secrets twice if that is meant")
        }
        _ => Ok(()),
    }
}

fn print(imported: &Imported) -> anyhow::Result<()> {
    let mut stdout = io::stdout();
    write!(stdout, "---\n{}", imported.channel)?;
    if let Some(secret) = &imported.secret {
        write!(stdout, "---\n{}", secret.expose_secret())?;
    }
    Ok(())
}

/// Where the manifests go.
struct Folder<'a> {
    path: &'a Path,
    force: bool,
    /// What this run has written: nothing of it is overwritten, forced or not.
    written: BTreeSet<PathBuf>,
}

impl<'a> Folder<'a> {
    fn new(path: &'a Path, force: bool) -> Self {
        Self {
            path,
            force,
            written: BTreeSet::new(),
        }
    }

    fn write(&mut self, imported: &Imported) -> anyhow::Result<()> {
        let file = |name: &str| self.path.join(format!("{name}.yaml"));
        let channel = file(&imported.name);
        let secret = file(&import::secret_file(&imported.name));
        // Both or none: half a channel is harder to clean up than none.
        for path in [&channel, &secret] {
            let wanted = path == &channel || imported.secret.is_some();
            if wanted && self.written.contains(path) {
                bail!("{} was written for another channel of this run", path.display());
            }
            if wanted && !self.force && path.symlink_metadata().is_ok() {
                bail!("{} is there already; overwrite it with --force", path.display());
            }
        }
        fs::create_dir_all(self.path).with_context(|| self.path.display().to_string())?;
        if let Some(text) = &imported.secret {
            create(&secret, text.expose_secret(), 0o600, self.force)?;
            self.written.insert(secret);
        }
        create(&channel, &imported.channel, 0o644, self.force)?;
        self.written.insert(channel);
        Ok(())
    }
}

/// Writes a new file with these rights. One that is in the way is removed first, not written into: it may be a link,
/// or open to others.
fn create(path: &Path, text: &str, mode: u32, force: bool) -> anyhow::Result<()> {
    let written = || {
        if force && path.symlink_metadata().is_ok() {
            fs::remove_file(path)?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(text.as_bytes())
    };
    written().with_context(|| path.display().to_string())
}

fn tell(severity: &str, what: &str) -> io::Result<()> {
    writeln!(io::stderr(), "{severity}: {}", printable(what))
}

fn summary(outcome: &Outcome, written: usize) -> io::Result<()> {
    for error in &outcome.errors {
        tell("error", error)?;
    }
    for warning in &outcome.warnings {
        tell("warning", warning)?;
    }
    let mut stderr = io::stderr();
    if !outcome.left_out.is_empty() {
        let fields = outcome
            .left_out
            .iter()
            .map(|(field, count)| format!("{field} ({count})"));
        let fields = fields.collect::<Vec<_>>().join(", ");
        writeln!(stderr, "not taken over, by the number of documents: {fields}")?;
    }
    write!(
        stderr,
        "{}, {}, {}",
        counted(written, "channel"),
        counted(outcome.errors.len(), "error"),
        counted(outcome.warnings.len(), "warning")
    )?;
    if outcome.other_types > 0 {
        let other = counted(outcome.other_types, "document");
        write!(stderr, "; {other} of another type skipped")?;
    }
    writeln!(stderr)
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    fn imported(name: &str) -> Imported {
        Imported {
            name: name.to_owned(),
            channel: format!("channel {name}"),
            secret: Some(SecretString::from(format!("fake secret of {name}"))),
        }
    }

    #[test]
    fn a_terminal_is_shown_credentials_only_when_asked_for_twice() {
        for (asked, terminal, allowed) in [
            (0, false, false),
            (0, true, false),
            (1, false, true),
            (1, true, false),
            (2, true, true),
            (3, true, true),
        ] {
            assert_eq!(may_print(asked, terminal).is_ok(), allowed, "{asked} {terminal}");
        }
    }

    #[test]
    fn what_a_run_has_written_it_does_not_overwrite_even_if_forced() {
        let text = |path: &Path, name: &str| fs::read_to_string(path.join(name)).unwrap();
        for (first, second) in [("shop", "shop-secret"), ("shop-secret", "shop")] {
            let dir = tempfile::tempdir().unwrap();
            let mut folder = Folder::new(dir.path(), true);
            folder.write(&imported(first)).unwrap();
            let error = folder.write(&imported(second)).unwrap_err().to_string();
            assert!(
                error.contains("shop-secret.yaml was written for another"),
                "{error}"
            );
            assert_eq!(
                text(dir.path(), &format!("{first}.yaml")),
                format!("channel {first}")
            );
            assert_eq!(
                text(dir.path(), &format!("{first}-secret.yaml")),
                format!("fake secret of {first}")
            );
            // Another run may.
            Folder::new(dir.path(), true).write(&imported(second)).unwrap();
        }
    }
}
