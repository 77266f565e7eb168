//! Reading the audit records of this controller's own journal, many at once, off the threads that serve.

use tamdao_store::journal::{JournalError, Reader, Told};

use crate::reconcile::journalist::AUDIT;
use crate::refusal::Refusal;

/// What was read in one go.
#[derive(Debug, Default)]
pub struct Page {
    /// Only those of the audit log.
    pub audits: Vec<Told>,
    /// Entries of any sort.
    pub entries: usize,
    /// Sequences of the first and the last of them; 0 if there was none.
    pub first: u64,
    pub last: u64,
}

/// Reads at most so many entries on, and gives the reader back.
///
/// # Errors
/// When the journal is damaged or cannot be read.
pub async fn read_on(mut reader: Reader, most: usize) -> Result<(Reader, Page), Refusal> {
    let read = tokio::task::spawn_blocking(move || -> Result<_, JournalError> {
        let mut page = Page::default();
        while page.entries < most
            && let Some(told) = reader.read()?
        {
            page.entries += 1;
            page.last = told.sequence;
            if page.first == 0 {
                page.first = told.sequence;
            }
            if told.key.starts_with(AUDIT) {
                page.audits.push(told);
            }
        }
        Ok((reader, page))
    });
    let read = read.await.map_err(|error| Refusal::internal(error.to_string()))?;
    read.map_err(|error| unreadable(&error))
}

/// What is told of a journal that cannot be read.
pub fn unreadable(error: &JournalError) -> Refusal {
    Refusal::internal(format!("the journal: {error}")).hint("tamdao audit verify tells where it is damaged")
}
