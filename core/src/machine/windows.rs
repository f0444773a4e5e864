//! Request windows: what is remembered of each client's requests, in memory.
//!
//! A window is read from its records when its client is met, changed here, and written back as the same records when the
//! state is frozen, or when memory is short. So an answer that is acknowledged before then never becomes a record. Every
//! change goes through the transaction of its command all the same, for the hash of all writes: which windows are in
//! memory, and since when, is each node's own matter.
//!
//! Source: D. Ongaro, Consensus: Bridging Theory and Practice (2014), section 6.3.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use trefoil_proto::internal::v1::{RequestAnswer, RequestClient};

use crate::key::{Key, Kind};
use crate::limits::ANSWER_RESIDENT_BYTES_MAX;
use crate::store::{Store, Txn, decode, prefix_end};
use crate::table::HashTable;

/// Answers that are read at once when a window comes into memory.
const LOADED_PAGE: usize = 250;
/// Bytes of a window beside its answers: places in the tables, the client's name and record.
const WINDOW_BYTES: usize = 320;
/// Bytes of an answer beside its record.
const ANSWER_BYTES: usize = 64;

/// The windows that are in memory.
#[derive(Debug, Default)]
pub(super) struct Windows {
    by_client: HashTable<Arc<str>, RequestWindow>,
    /// Each client once, the next that may go first.
    in_turn: VecDeque<Arc<str>>,
    /// Clients whose records are behind their windows.
    changed: BTreeSet<Arc<str>>,
    bytes: usize,
}

/// What is remembered of one client.
#[derive(Debug, Default)]
struct RequestWindow {
    /// None where nobody knows it.
    client: Option<RequestClient>,
    /// By sequence.
    answers: VecDeque<KeptAnswer>,
    /// The client was met since its window was last about to go.
    is_used: bool,
}

#[derive(Debug)]
struct KeptAnswer {
    sequence: u64,
    waits: bool,
    /// The encoded answer; none where that is too large to be kept here, and is in the store.
    record: Option<Bytes>,
    /// The store has a record of it, this one or one before it.
    is_stored: bool,
    /// The store does not have this one.
    is_behind: bool,
}

/// The window of a client, as one command sees it.
pub(super) struct ClientWindow<'w, 'a> {
    name: Arc<str>,
    window: &'w mut RequestWindow,
    changed: &'w mut BTreeSet<Arc<str>>,
    bytes: &'w mut usize,
    txn: &'w mut Txn<'a>,
}

impl Windows {
    /// The window of a client, whether that is known or not.
    pub(super) fn of<'w, 'a>(
        &'w mut self,
        name: &str,
        txn: &'w mut Txn<'a>,
    ) -> ClientWindow<'w, 'a> {
        let known = self.by_client.key(name).map(Arc::clone);
        let name = known.unwrap_or_else(|| self.load(name, txn));
        let window = self.by_client.get_mut(&name).expect("it is in memory by now");
        window.is_used = true;
        ClientWindow { name, window, changed: &mut self.changed, bytes: &mut self.bytes, txn }
    }

    fn load(&mut self, name: &str, txn: &Txn<'_>) -> Arc<str> {
        let client = txn.get_message::<RequestClient>(client_key(name).bytes());
        let mut answers = VecDeque::new();
        if client.is_some() {
            let all = answers_key(name);
            let end = prefix_end(all.bytes());
            let mut start = Bytes::from(all);
            loop {
                let page = txn.scan(&start, &end, LOADED_PAGE);
                answers.extend(page.iter().map(|(key, record)| KeptAnswer::read(key, record)));
                match page.last() {
                    Some((last, _)) if page.len() == LOADED_PAGE => start = after(last),
                    _ => break,
                }
            }
        }
        self.bytes += WINDOW_BYTES + answers.iter().map(KeptAnswer::bytes).sum::<usize>();
        let name = Arc::<str>::from(name);
        self.in_turn.push_back(Arc::clone(&name));
        self.by_client.insert(Arc::clone(&name), RequestWindow { client, answers, is_used: true });
        name
    }

    /// Writes the records that are behind their windows.
    pub(super) fn freeze(&mut self, store: &mut impl Store) {
        for name in std::mem::take(&mut self.changed) {
            let window = self.by_client.get_mut(&name).expect("what has changed is in memory");
            window.freeze(&name, store);
        }
    }

    /// The records that [`Self::freeze`] would write.
    pub(super) fn pending(&self) -> impl Iterator<Item = (Bytes, Bytes)> {
        self.changed.iter().flat_map(|name| {
            self.by_client.get(name).into_iter().flat_map(|window| window.pending(name))
        })
    }

    /// Lets go what was not used for longest until no more than so many bytes are left.
    pub(super) fn trim(&mut self, store: &mut impl Store, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some(name) = self.in_turn.pop_front()
        {
            let window = self.by_client.get_mut(&name).expect("each has one turn");
            if std::mem::take(&mut window.is_used) {
                self.in_turn.push_back(name);
                continue;
            }
            if self.changed.remove(&name) && !crate::mutant!(WindowLost) {
                window.freeze(&name, store);
            }
            let answers = window.answers.iter().map(KeptAnswer::bytes).sum::<usize>();
            self.bytes -= WINDOW_BYTES + answers;
            self.by_client.remove(&name);
        }
    }
}

impl RequestWindow {
    fn pending(&self, name: &str) -> impl Iterator<Item = (Bytes, Bytes)> {
        let answers = self.answers.iter().filter(|answer| answer.is_behind);
        let answers = answers.filter_map(move |answer| {
            Some((answers_key(name).u64(answer.sequence).into(), answer.record.clone()?))
        });
        let client =
            self.client.map(|client| (client_key(name).into(), client.encode_to_vec().into()));
        answers.chain(client)
    }

    fn freeze(&mut self, name: &str, store: &mut impl Store) {
        for (key, record) in self.pending(name) {
            store.put(key, record);
        }
        for answer in &mut self.answers {
            (answer.is_stored, answer.is_behind) = (true, false);
        }
    }
}

impl KeptAnswer {
    fn new(sequence: u64, answer: &RequestAnswer, record: &Bytes) -> Self {
        let is_small = record.len() <= ANSWER_RESIDENT_BYTES_MAX;
        Self {
            sequence,
            waits: waits(answer),
            record: is_small.then(|| record.clone()),
            is_stored: !is_small,
            is_behind: is_small,
        }
    }

    fn read(key: &[u8], record: &Bytes) -> Self {
        let (_, sequence) =
            key.split_last_chunk().expect("the key of an answer ends with its sequence");
        let kept = Self::new(u64::from_be_bytes(*sequence), &decode(record), record);
        Self { is_stored: true, is_behind: false, ..kept }
    }

    fn bytes(&self) -> usize {
        ANSWER_BYTES + self.record.as_ref().map_or(0, Bytes::len)
    }
}

impl ClientWindow<'_, '_> {
    /// What is known of the client.
    pub(super) fn client(&self) -> Option<RequestClient> {
        self.window.client
    }

    /// Whether an answer below that sequence is kept.
    pub(super) fn keeps_below(&self, sequence: u64) -> bool {
        self.window.answers.front().is_some_and(|first| first.sequence < sequence)
    }

    /// The answer that is kept for a sequence.
    pub(super) fn answer(&self, sequence: u64) -> Option<RequestAnswer> {
        let kept = &self.window.answers[self.find(sequence).ok()?];
        match &kept.record {
            Some(record) => Some(decode(record)),
            None => self.txn.get_message(self.answer_key(sequence).bytes()),
        }
    }

    /// Keeps an answer in the place of what was kept for its sequence.
    pub(super) fn keep(&mut self, sequence: u64, answer: &RequestAnswer) {
        let record = Bytes::from(answer.encode_to_vec());
        let mut kept = KeptAnswer::new(sequence, answer, &record);
        let key = self.answer_key(sequence);
        if kept.is_behind {
            self.txn.note(key, Some(record));
        } else {
            self.txn.put(key, record);
        }
        *self.bytes += kept.bytes();
        match self.find(sequence) {
            Ok(at) => {
                let before = &mut self.window.answers[at];
                *self.bytes -= before.bytes();
                kept.is_stored |= before.is_stored;
                *before = kept;
            }
            Err(at) => self.window.answers.insert(at, kept),
        }
        self.changed();
    }

    /// Forgets answers below a sequence, or all, the first so many of them. Says how many these were, and how many of them
    /// waited.
    pub(super) fn forget(&mut self, below: Option<u64>, most: usize) -> (u32, u32) {
        let (mut count, mut waiting) = (0, 0);
        for _ in 0..most {
            let goes = |first: &mut KeptAnswer| below.is_none_or(|end| first.sequence < end);
            let Some(first) = self.window.answers.pop_front_if(goes) else { break };
            let key = self.answer_key(first.sequence);
            if first.is_stored {
                self.txn.delete(key);
            } else {
                self.txn.note(key, None);
            }
            *self.bytes -= first.bytes();
            count += 1;
            waiting += u32::from(first.waits);
        }
        (count, waiting)
    }

    /// Says what is known of the client from now on.
    pub(super) fn put_client(&mut self, client: RequestClient) {
        self.txn.note(client_key(&self.name), Some(client.encode_to_vec().into()));
        self.window.client = Some(client);
        self.changed();
    }

    /// Knows the client no longer; its answers were forgotten before.
    pub(super) fn forget_client(&mut self) {
        self.txn.delete(client_key(&self.name));
        self.window.client = None;
    }

    fn changed(&mut self) {
        if !self.changed.contains(&self.name) {
            self.changed.insert(Arc::clone(&self.name));
        }
    }

    fn find(&self, sequence: u64) -> Result<usize, usize> {
        self.window.answers.binary_search_by_key(&sequence, |answer| answer.sequence)
    }

    fn answer_key(&self, sequence: u64) -> Key {
        answers_key(&self.name).u64(sequence)
    }
}

/// Whether a command still waits for its answer.
pub(super) fn waits(answer: &RequestAnswer) -> bool {
    answer.answer.is_none()
}

fn client_key(name: &str) -> Key {
    Key::system(Kind::RequestClient).tail(name.as_bytes())
}

fn answers_key(name: &str) -> Key {
    Key::system(Kind::RequestAnswer).text(name)
}

/// The key that comes right after another.
fn after(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}
