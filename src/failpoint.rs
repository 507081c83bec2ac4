//! Places at which a test can end the process as `kill -9` would, between two steps of which a crash may come; or hold
//! it, as a disk would that does not answer.
//!
//! Only with the feature `sim`. Without it `at!` and `after!` expand to nothing, so what is released has neither the
//! calls nor the variable's name. Upholds Law 1: the crash tests end the bridge at each of these places under load.

/// Ends the process here, or holds this thread, if this place is armed and it is its turn. Only the journal's places may
/// hold: they have threads of their own, and the rest would stop others' work with theirs.
#[cfg(feature = "sim")]
macro_rules! at {
    ($place:ident) => {
        $crate::failpoint::hit($crate::failpoint::Place::$place)
    };
}

#[cfg(not(feature = "sim"))]
macro_rules! at {
    ($place:ident) => {};
}

/// As `at!`, a moment later: for what happens after the caller has returned, such as an answer that is written.
#[cfg(feature = "sim")]
macro_rules! after {
    ($place:ident) => {
        $crate::failpoint::hit_soon($crate::failpoint::Place::$place)
    };
}

#[cfg(not(feature = "sim"))]
macro_rules! after {
    ($place:ident) => {};
}

pub(crate) use {after, at};

#[cfg(feature = "sim")]
pub use armed::{Place, VARIABLE};
#[cfg(feature = "sim")]
pub(crate) use armed::{hit, hit_soon};

#[cfg(feature = "sim")]
mod armed {
    use std::{
        io::Write as _,
        path::{Path, PathBuf},
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    use rustix::process::{Signal, getpid, kill_process};

    /// The environment variable that arms a place: its name, a colon, and at the how-manyeth hit it acts, from 1; or its
    /// name, an at sign, and a file: each hit waits there as long as the file exists.
    pub const VARIABLE: &str = "AURA_FAILPOINT";

    /// How often it is looked whether the file is still there.
    const LOOK: Duration = Duration::from_millis(5);

    /// How long after the hit [`hit_soon`] ends the process: an answer is written by then.
    const SOON: Duration = Duration::from_millis(2);

    /// A place, in the order that a message comes by.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub enum Place {
        /// A webhook call was read; nothing of it is in the journal.
        WebhookReceived,
        /// The journal is about to write a commit.
        JournalBeforeWrite,
        /// A commit is written and not synced.
        JournalWritten,
        /// A commit is synced and nobody was answered.
        JournalSynced,
        /// Kernel has its 200.
        WebhookAnswered,
        /// A message is about to be posted to Aura.
        BeforeAura,
        /// Aura has answered; that is not recorded.
        AfterAura,
        /// A reply was read; nothing of it is in the journal.
        ReplyReceived,
        /// A reply is in the journal; Aura has no answer.
        ReplyKept,
        /// A message is about to be sent to Kernel.
        BeforeKernel,
        /// Kernel has answered; that is not recorded.
        AfterKernel,
        /// How a message ended is on disk; its lane does not know.
        Settled,
    }

    impl Place {
        /// All of them.
        pub const ALL: [Self; 12] = [
            Self::WebhookReceived,
            Self::JournalBeforeWrite,
            Self::JournalWritten,
            Self::JournalSynced,
            Self::WebhookAnswered,
            Self::BeforeAura,
            Self::AfterAura,
            Self::ReplyReceived,
            Self::ReplyKept,
            Self::BeforeKernel,
            Self::AfterKernel,
            Self::Settled,
        ];

        /// Its name in [`VARIABLE`].
        pub fn name(self) -> &'static str {
            match self {
                Self::WebhookReceived => "webhook-received",
                Self::JournalBeforeWrite => "journal-before-write",
                Self::JournalWritten => "journal-written",
                Self::JournalSynced => "journal-synced",
                Self::WebhookAnswered => "webhook-answered",
                Self::BeforeAura => "before-aura",
                Self::AfterAura => "after-aura",
                Self::ReplyReceived => "reply-received",
                Self::ReplyKept => "reply-kept",
                Self::BeforeKernel => "before-kernel",
                Self::AfterKernel => "after-kernel",
                Self::Settled => "settled",
            }
        }

        /// The value of [`VARIABLE`] that arms it.
        pub fn armed_at(self, hit: u64) -> String {
            format!("{}:{hit}", self.name())
        }

        /// The value of [`VARIABLE`] that holds it as long as this file exists.
        pub fn held_by(self, file: &Path) -> String {
            format!("{}@{}", self.name(), file.display())
        }

        /// What a process says before it ends here.
        pub fn last_words(self) -> String {
            format!("failpoint {}: killed", self.name())
        }
    }

    /// What is done at a place.
    #[derive(Debug, PartialEq, Eq)]
    enum Action {
        /// The process ends at this hit.
        Kill(u64),
        /// The thread waits while this file exists.
        Hold(PathBuf),
    }

    /// Reads the value of [`VARIABLE`]; nothing where it names no place.
    fn parse(value: &str) -> Option<(Place, Action)> {
        let (name, action) = if let Some((name, file)) = value.split_once('@') {
            (name, Action::Hold(file.into()))
        } else {
            let (name, hit) = value.split_once(':')?;
            (name, Action::Kill(hit.parse().ok().filter(|hit| *hit > 0)?))
        };
        let place = Place::ALL.into_iter().find(|place| place.name() == name)?;
        Some((place, action))
    }

    pub(crate) fn hit(place: Place) {
        static ARMED: LazyLock<Option<(Place, Action)>> =
            LazyLock::new(|| std::env::var(VARIABLE).ok().as_deref().and_then(parse));
        static HITS: AtomicU64 = AtomicU64::new(0);
        match &*ARMED {
            Some((armed, Action::Kill(turn)))
                if *armed == place && HITS.fetch_add(1, Ordering::Relaxed) + 1 == *turn =>
            {
                kill(place);
            }
            Some((armed, Action::Hold(file))) if *armed == place => {
                while file.exists() {
                    std::thread::sleep(LOOK);
                }
            }
            _ => {}
        }
    }

    fn kill(place: Place) -> ! {
        // Without a lock or a buffer: nothing of this process goes on.
        let _ = std::io::stderr().write_all(format!("{}\n", place.last_words()).as_bytes());
        let _ = kill_process(getpid(), Signal::KILL);
        loop {
            std::thread::park();
        }
    }

    pub(crate) fn hit_soon(place: Place) {
        tokio::spawn(async move {
            tokio::time::sleep(SOON).await;
            hit(place);
        });
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_place_is_armed_by_its_name_and_the_hit() {
            for place in Place::ALL {
                assert_eq!(parse(&place.armed_at(7)), Some((place, Action::Kill(7))));
                let file = Path::new("/a/b:c");
                assert_eq!(
                    parse(&place.held_by(file)),
                    Some((place, Action::Hold(file.into())))
                );
            }
            for nothing in [
                "",
                "settled",
                "settled:0",
                "settled:x",
                "elsewhere:1",
                "elsewhere@/a",
            ] {
                assert_eq!(parse(nothing), None, "{nothing}");
            }
        }
    }
}
