//! Follows the configuration's file: takes what is good, keeps the last good one where it is not.
//!
//! A mounted ConfigMap is replaced by a symbolic link that changes its target, which a watch of the file itself does not
//! see: so the file is read every few seconds, which costs nothing to speak of.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{ConfigError, Installation};

/// How often the file is looked at.
pub const EVERY: Duration = Duration::from_secs(2);

/// What a look at the file found.
#[derive(Debug)]
pub enum Look {
    /// What was there before.
    Same,
    /// Another configuration, checked.
    New(Box<Installation>),
    /// Something that can't be used, seen for the first time. The last good one stays in force.
    Bad(ConfigError),
}

/// One file, as it was when it was looked at last.
#[derive(Debug)]
pub struct Follow {
    path: PathBuf,
    seen: Option<Vec<u8>>,
}

impl Follow {
    /// Follows this file; `in_force` was read from it.
    pub fn new(path: &Path, in_force: &Installation) -> Self {
        // A file that has changed since it was read is seen as changed at the first look.
        let seen = std::fs::read(path).ok().filter(|bytes| {
            std::str::from_utf8(bytes)
                .ok()
                .and_then(|text| Installation::parse(text, "").ok())
                .is_some_and(|parsed| parsed == *in_force)
        });
        Self {
            path: path.to_owned(),
            seen,
        }
    }

    /// Has the next look take what is there for new.
    pub fn again(&mut self) {
        self.seen = None;
    }

    /// Looks at the file.
    pub fn look(&mut self) -> Look {
        let name = self.path.display().to_string();
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(source) => {
                // Gone for a moment while it is replaced, or for good: said once.
                return match self.seen.replace(Vec::new()) {
                    Some(before) if before.is_empty() => Look::Same,
                    _ => Look::Bad(ConfigError::Read { path: name, source }),
                };
            }
        };
        if self.seen.as_ref() == Some(&bytes) {
            return Look::Same;
        }
        let parsed = match std::str::from_utf8(&bytes) {
            Ok(text) => Installation::parse(text, &name),
            Err(_) => Err(ConfigError::Parse {
                path: name,
                reason: "it is not text in UTF-8".to_owned(),
            }),
        };
        self.seen = Some(bytes);
        match parsed {
            Ok(installation) => Look::New(Box::new(installation)),
            Err(error) => Look::Bad(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::GOOD, *};

    #[test]
    fn a_change_is_taken_once_a_bad_one_is_told_once_and_the_way_back_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, GOOD).unwrap();
        let in_force = Installation::load(&path).unwrap();
        let mut follow = Follow::new(&path, &in_force);
        assert!(matches!(follow.look(), Look::Same));

        std::fs::write(&path, GOOD.replace("[aura-es]", "[aura-es, aura-pt]")).unwrap();
        let Look::New(new) = follow.look() else {
            panic!("a good change is taken")
        };
        assert!(new.environments["es-pro"].allows("aura-pt"));
        assert!(matches!(follow.look(), Look::Same));

        std::fs::write(&path, GOOD.replace("namespaces:", "namespace:")).unwrap();
        let Look::Bad(error) = follow.look() else {
            panic!("a bad one is told")
        };
        assert!(error.to_string().contains("line 4"), "{error}");
        assert!(matches!(follow.look(), Look::Same));

        std::fs::remove_file(&path).unwrap();
        assert!(matches!(follow.look(), Look::Bad(ConfigError::Read { .. })));
        assert!(matches!(follow.look(), Look::Same));
        std::fs::write(&path, GOOD).unwrap();
        assert!(matches!(follow.look(), Look::New(_)));
    }

    #[test]
    fn a_file_that_changed_between_the_start_and_the_first_look_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, GOOD).unwrap();
        let in_force = Installation::load(&path).unwrap();
        std::fs::write(&path, GOOD.replace("[aura-es]", "[aura-pt]")).unwrap();
        assert!(matches!(Follow::new(&path, &in_force).look(), Look::New(_)));
    }
}
