//! Reads what a pipeline names: files, folders, standard input. Nothing of their content stands in an error.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::validate::{Code, Problem, Source};

/// What `-` is called.
const STDIN: &str = "<stdin>";
/// The most that one file may hold, in bytes: tens of thousands of manifests.
const MAX_FILE: u64 = 64 << 20;
/// The most folders in one another.
const MAX_DEPTH: usize = 32;

/// What was read, and what could not be.
#[derive(Default)]
pub(super) struct Sources {
    pub read: Vec<Source>,
    pub unreadable: Vec<Problem>,
    seen: BTreeSet<PathBuf>,
}

impl Sources {
    /// Reads each of these. In a folder: every `.yaml`, `.yml` and `.json`, at any depth, by name, but nothing hidden.
    pub fn read(paths: &[PathBuf]) -> Self {
        let mut sources = Self::default();
        for path in paths {
            if path == Path::new("-") {
                let text = text(io::stdin().lock());
                sources.keep(STDIN.to_owned(), text);
            } else {
                sources.path(path, 0);
            }
        }
        sources
    }

    fn path(&mut self, path: &Path, depth: usize) {
        let name = path.display().to_string();
        let folder = match fs::metadata(path) {
            Ok(metadata) => metadata.is_dir(),
            Err(error) => return self.keep(name, Err(error)),
        };
        // A file that is named twice is read once: its channels are no duplicates of themselves.
        if !self
            .seen
            .insert(path.canonicalize().unwrap_or_else(|_| path.to_owned()))
        {
            return;
        }
        if !folder {
            return self.keep(name, File::open(path).and_then(text));
        }
        if depth == MAX_DEPTH {
            return self.keep(name, Err(io::Error::other("too many folders in one another")));
        }
        match entries(path) {
            Ok(entries) => entries.iter().for_each(|entry| self.path(entry, depth + 1)),
            Err(error) => self.keep(name, Err(error)),
        }
    }

    fn keep(&mut self, name: String, text: io::Result<String>) {
        match text {
            Ok(text) => self.read.push(Source { name, text }),
            Err(error) => {
                let problem = Problem::of_file(Code::Unreadable, &name, format!("can't be read: {error}"));
                self.unreadable.push(problem);
            }
        }
    }
}

/// What is read of a folder, sorted. A link to a folder is not followed: it may lead in a circle.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let extension = path.extension().and_then(|it| it.to_str()).unwrap_or_default();
        let manifest = ["yaml", "yml", "json"].contains(&extension) && !path.is_dir();
        if !hidden && (kind.is_dir() || manifest) {
            entries.push(path);
        }
    }
    entries.sort();
    Ok(entries)
}

fn text(from: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    from.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("larger than {} MiB", MAX_FILE >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("not UTF-8 text"))
}
