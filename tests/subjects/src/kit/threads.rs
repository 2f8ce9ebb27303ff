//! Threads that build state of their own and check it themselves when they are asked.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::{SOON, Watch};

/// This thread's number.
pub(crate) fn tid() -> i32 {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Threads, each with a watch of its own.
#[derive(Default)]
pub(crate) struct Crew {
    members: Vec<(Sender<bool>, Receiver<Result<()>>)>,
}

impl Crew {
    /// Starts a thread and waits until its state stands.
    pub(crate) fn add(
        &mut self,
        build: impl FnOnce() -> Result<Watch> + Send + 'static,
    ) -> Result<()> {
        let (question, questions) = channel();
        let (answer, answers) = channel();
        std::thread::spawn(move || {
            let mut watch = match build() {
                Ok(watch) => {
                    let _ = answer.send(Ok(()));
                    watch
                }
                Err(error) => {
                    let _ = answer.send(Err(error));
                    return;
                }
            };
            for spoil in questions {
                let result = if spoil { watch.spoil() } else { watch.check() };
                let _ = answer.send(result);
            }
        });
        answers.recv_timeout(SOON).context("a thread is silent")??;
        self.members.push((question, answers));
        Ok(())
    }

    fn ask(&self, member: usize, spoil: bool) -> Result<()> {
        let (question, answers) = &self.members[member];
        question.send(spoil).map_err(|_| anyhow!("it has ended"))?;
        answers
            .recv_timeout(SOON + Duration::from_secs(20))
            .context("no answer")?
    }

    /// A watch over all of them; the last one knows how to be broken.
    pub(crate) fn watch(self) -> Watch {
        let crew = std::rc::Rc::new(self);
        let last = crew.members.len() - 1;
        let other = crew.clone();
        Watch::new(move || {
            (0..=last).try_for_each(|member| {
                crew.ask(member, false)
                    .with_context(|| format!("thread {member}"))
            })
        })
        .spoiled_by(move || other.ask(last, true))
    }
}
