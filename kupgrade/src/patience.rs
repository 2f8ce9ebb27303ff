//! What is refused may be there for a moment only: a message that is read at once, a child that is about to
//! run another program.

use anyhow::Result;
use freezer::FreezerError;
use std::fmt;
use std::time::Duration;

/// Between the tries.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(90),
];

/// Between more of them, when what was looked at before anything was stopped was all carried: what is refused after that
/// is hardly there for longer than a second, in which TCP asks again.
const LONGER: [Duration; 2] = [Duration::from_millis(270), Duration::from_millis(810)];

/// What is not carried, found before anything was stopped.
#[derive(Debug)]
pub(crate) struct NotCarried(Vec<String>);

impl NotCarried {
    /// Nothing is refused, or all of it is named.
    pub(crate) fn unless_empty(
        refusals: impl IntoIterator<Item = impl ToString>,
    ) -> Result<(), NotCarried> {
        let found: Vec<_> = refusals.into_iter().map(|it| it.to_string()).collect();
        match found.is_empty() {
            true => Ok(()),
            false => Err(NotCarried(found)),
        }
    }
}

impl fmt::Display for NotCarried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not carried, nothing was touched:\n{}",
            self.0.join("\n")
        )
    }
}

impl std::error::Error for NotCarried {}

/// Tries again a few times while something is not carried.
///
/// # Errors
/// What is still wrong in the last try, or anything else at once. Of a process that has ended since it was refused, why
/// it was.
pub(crate) fn patiently<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut refused = None;
    let pauses = PAUSES.map(|pause| (pause, false)).into_iter();
    let pauses = pauses.chain(LONGER.map(|pause| (pause, true)));
    for (pause, longer) in pauses {
        match attempt() {
            Err(error) if is_refusal(&error) && !(longer && error.is::<NotCarried>()) => {
                log::info!("{error:#}; trying again");
                if !of_ended(&error) {
                    refused = Some(error);
                }
            }
            result => return result.map_err(|error| instead(error, refused)),
        }
        std::thread::sleep(pause);
    }
    attempt().map_err(|error| instead(error, refused))
}

/// The error that tells more, of the last one and the refusal before.
fn instead(last: anyhow::Error, refused: Option<anyhow::Error>) -> anyhow::Error {
    match refused {
        Some(refused) if of_ended(&last) => {
            refused.context("the process has ended; before, it was refused")
        }
        _ => last,
    }
}

/// Whether it may be over in a moment. Processes end while they are looked at, and while they stand still.
fn is_refusal(error: &anyhow::Error) -> bool {
    of_ended(error)
        || error.chain().any(|cause| {
            let late = cause.downcast_ref::<FreezerError>();
            cause.is::<NotCarried>() || matches!(late, Some(FreezerError::Refused(_)))
        })
}

fn of_ended(error: &anyhow::Error) -> bool {
    let late = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref().is_some_and(FreezerError::is_of_ended)
    };
    error.chain().any(late)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn only_what_is_refused_is_tried_again() {
        let mut tries = 0;
        let mut results = [
            NotCarried::unless_empty(["a message"]).context("checking"),
            Err(FreezerError::Refused(Vec::new())).context("capturing"),
            Ok(()),
        ]
        .into_iter();
        let done = patiently(|| {
            tries += 1;
            results.next().unwrap_or(Err(anyhow!("too often")))
        });
        assert_eq!((done.is_ok(), tries), (true, 3));
        let refusal = Err(FreezerError::Refused(Vec::new())).context("its rseq is none");
        let errno = sys::Errno::ESRCH;
        let (pid, doing) = (sys::Pid(1), "looking".to_owned());
        let gone = || {
            let doing = doing.clone();
            Err(FreezerError::Call { pid, doing, errno }.into())
        };
        let mut results = [refusal].into_iter();
        let ended: Result<()> = patiently(|| results.next().unwrap_or_else(gone));
        assert!(format!("{:#}", ended.unwrap_err()).contains("its rseq is none"));
        let mut results = [gone()].into_iter();
        let killed: Result<()> = patiently(|| results.next().unwrap_or(Ok(())));
        assert!(killed.is_ok());
        let mut tries = 0;
        let other: Result<()> = patiently(|| {
            tries += 1;
            Err(anyhow!("no room"))
        });
        assert_eq!((other.is_err(), tries), (true, 1));
        let last = patiently(|| Ok(NotCarried::unless_empty(["it"])?)).unwrap_err();
        assert_eq!(last.to_string(), "not carried, nothing was touched:\nit");
    }
}
