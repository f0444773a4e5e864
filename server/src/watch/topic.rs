//! What can be watched, and who is to be woken.

use std::collections::BTreeMap;

use tokio::sync::watch;
use trefoil_core::machine::Event;

/// What wakes a watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Everything in a namespace.
    Namespace(String),
    /// What happens to one name.
    Name {
        /// Its namespace.
        namespace: String,
        /// The name.
        name: String,
    },
    /// What a session is asked for.
    Session {
        /// Its namespace.
        namespace: String,
        /// The session.
        id: u64,
    },
}

/// What a watcher wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// What wakes it.
    pub topic: Topic,
    /// Only names that begin with this.
    pub prefix: String,
}

impl Filter {
    pub(super) fn passes(&self, event: &Event) -> bool {
        let is_of_topic = match &self.topic {
            Topic::Namespace(namespace) => event.namespace == *namespace,
            Topic::Name { namespace, name } => {
                event.name() == name && event.namespace == *namespace
            }
            Topic::Session { namespace, id } => {
                event.asks() == Some(*id) && event.namespace == *namespace
            }
        };
        is_of_topic && event.name().starts_with(&self.prefix)
    }
}

/// Where the events of a topic are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicMark {
    /// Index of the last one, or a later one.
    pub(super) last: u64,
    /// None after this index is missing: that of the last one that had to make room, or a later one.
    pub(super) floor: u64,
}

/// The topics that are watched.
#[derive(Debug, Default)]
pub(super) struct Topics {
    namespaces: BTreeMap<String, NamespaceTopics>,
}

#[derive(Debug, Default)]
struct NamespaceTopics {
    all: Option<watch::Sender<TopicMark>>,
    names: BTreeMap<String, watch::Sender<TopicMark>>,
    sessions: BTreeMap<u64, watch::Sender<TopicMark>>,
}

impl NamespaceTopics {
    fn is_empty(&self) -> bool {
        self.all.is_none() && self.names.is_empty() && self.sessions.is_empty()
    }

    /// Every topic of the namespace.
    fn every(&self) -> impl Iterator<Item = &watch::Sender<TopicMark>> {
        self.all.iter().chain(self.names.values()).chain(self.sessions.values())
    }

    /// Those that an event belongs to.
    fn of(&self, event: &Event) -> impl Iterator<Item = &watch::Sender<TopicMark>> {
        let session = event.asks().and_then(|id| self.sessions.get(&id));
        self.all.iter().chain(self.names.get(event.name())).chain(session)
    }
}

impl Topics {
    /// Begins to watch. A new topic may have had events anywhere in the window.
    pub(super) fn subscribe(
        &mut self,
        topic: &Topic,
        window: TopicMark,
    ) -> watch::Receiver<TopicMark> {
        let begin = || watch::Sender::new(window);
        match topic {
            Topic::Namespace(namespace) => {
                let topics = self.namespaces.entry(namespace.clone()).or_default();
                topics.all.get_or_insert_with(begin).subscribe()
            }
            Topic::Name { namespace, name } => {
                let topics = self.namespaces.entry(namespace.clone()).or_default();
                topics.names.entry(name.clone()).or_insert_with(begin).subscribe()
            }
            Topic::Session { namespace, id } => {
                let topics = self.namespaces.entry(namespace.clone()).or_default();
                topics.sessions.entry(*id).or_insert_with(begin).subscribe()
            }
        }
    }

    /// One who watched is gone: so is what nobody else watches.
    pub(super) fn unsubscribe(&mut self, topic: &Topic) {
        let is_left = |sender: &watch::Sender<TopicMark>| sender.receiver_count() == 0;
        let (Topic::Namespace(namespace)
        | Topic::Name { namespace, .. }
        | Topic::Session { namespace, .. }) = topic;
        let Some(topics) = self.namespaces.get_mut(namespace) else { return };
        match topic {
            Topic::Namespace(_) => drop(topics.all.take_if(|sender| is_left(sender))),
            Topic::Name { name, .. } => {
                if topics.names.get(name).is_some_and(is_left) {
                    topics.names.remove(name);
                }
            }
            Topic::Session { id, .. } => {
                if topics.sessions.get(id).is_some_and(is_left) {
                    topics.sessions.remove(id);
                }
            }
        }
        if topics.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// An entry had these events: who watches them wakes.
    pub(super) fn note(&self, index: u64, events: &[Event]) {
        self.each(events, |mark| std::mem::replace(&mut mark.last, index) != index);
    }

    /// The events of an entry had to make room.
    pub(super) fn forget(&self, index: u64, events: &[Event]) {
        self.each(events, |mark| {
            mark.floor = index;
            false
        });
    }

    /// Anything may have happened up to this index.
    pub(super) fn forget_all(&self, index: u64) {
        for topics in self.namespaces.values() {
            for sender in topics.every() {
                sender.send_replace(TopicMark { last: index, floor: index });
            }
        }
    }

    /// Changes the mark of every topic that has one of these events.
    fn each(&self, events: &[Event], change: impl Fn(&mut TopicMark) -> bool) {
        if self.namespaces.is_empty() {
            return;
        }
        for event in events {
            let Some(topics) = self.namespaces.get(&event.namespace) else { continue };
            for sender in topics.of(event) {
                sender.send_if_modified(&change);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
    }
}
