//! A watch that outlives the controller that serves it: when the stream breaks it is opened again at another one from
//! the last cursor, and when the cursor is older than the history kept, from the present state. The reader sees one
//! ordered stream; a resource may be seen again after a restart from the present state.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;
use tonic::Code;

use crate::client::{Client, passes};
use crate::problem::Problem;
use crate::resource::{Change, Changes, Place, Resource};

const PAUSE: Duration = Duration::from_millis(100);

/// Changes of one kind of resource.
pub struct Watch<'a, R: Resource> {
    client: &'a Client,
    place: Place,
    labels: String,
    cursor: String,
    open: Option<(usize, Changes<R>)>,
    /// Since when no message has come through, while streams break.
    broken_since: Option<Instant>,
}

impl<'a, R: Resource> Watch<'a, R> {
    /// Prepares a watch of one resource, or of all in a scope when the name is empty; an empty cursor begins with the
    /// present state.
    pub fn new(client: &'a Client, place: Place, labels: &str, cursor: String) -> Self {
        Self { client, place, labels: labels.to_owned(), cursor, open: None, broken_since: None }
    }

    /// The next change; waits for it.
    pub async fn next(&mut self) -> Result<Change<R>, Problem> {
        loop {
            let (index, stream) = match &mut self.open {
                Some(open) => open,
                None => {
                    let opened = self
                        .client
                        .call(|wire| R::open_watch(wire, &self.place, &self.labels, self.cursor.clone()));
                    let stream = match opened.await {
                        Err(problem) if too_old(problem.code, &problem.reason) && !self.cursor.is_empty() => {
                            self.cursor.clear();
                            continue;
                        }
                        opened => opened?,
                    };
                    self.open.insert((self.client.place(), stream))
                }
            };
            let index = *index;
            match stream.next().await {
                Some(Ok(change)) => {
                    if !change.cursor.is_empty() {
                        self.cursor.clone_from(&change.cursor);
                    }
                    self.broken_since = None;
                    return Ok(change);
                }
                Some(Err(status)) if !passes(&status) => {
                    let problem = Problem::from_status(&status);
                    if !too_old(problem.code, &problem.reason) || self.cursor.is_empty() {
                        return Err(problem);
                    }
                    self.cursor.clear();
                    self.open = None;
                }
                // A stream that ends is a controller that stops.
                _ => self.reopen(index).await?,
            }
        }
    }

    async fn reopen(&mut self, index: usize) -> Result<(), Problem> {
        self.open = None;
        self.client.pass_on(index);
        match self.broken_since {
            None => self.broken_since = Some(Instant::now()),
            Some(since) if since.elapsed() > self.client.retry_for() => {
                return Err(Problem::unreachable(vec![(
                    self.client.address().to_owned(),
                    "answers, but its watch ends at once".to_owned(),
                )]));
            }
            Some(_) => tokio::time::sleep(PAUSE).await,
        }
        Ok(())
    }
}

/// The cursor is older than the history kept.
pub fn too_old(code: Option<Code>, reason: &str) -> bool {
    code == Some(Code::OutOfRange) || reason.eq_ignore_ascii_case("compacted")
}
