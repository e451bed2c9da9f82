//! What resources say, made ready: groups with their criteria read, sources with their rights, endpoints with their places.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::criteria::{Criteria, Criterion};
use super::membership::{Place, Placing};
use crate::control::glob::Pattern;
use crate::resource::{DEFAULT_GROUP, SecurityGroup, SourceType, TagSource, Transfer as TransferSpec};

/// The source that stands for the operator (`vnet-ctl tag`).
pub const OPERATOR: &str = "operator";

/// What the engine follows from.
#[derive(Clone, Debug, Default)]
pub struct Inputs<'a> {
    /// Every security group.
    pub groups: Vec<&'a SecurityGroup>,
    /// Every tag source.
    pub sources: Vec<&'a TagSource>,
    /// Every endpoint, discovered or configured: name and labels.
    pub endpoints: Vec<(&'a str, &'a BTreeMap<String, String>)>,
}

/// A security group.
#[derive(Debug)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The resource; `None`: the built-in `default`.
    pub resource: Option<SecurityGroup>,
    /// The expression of its selector.
    pub selector: Option<Arc<Criterion>>,
    /// By priority, then as written.
    pub transfers: Vec<Transfer>,
}

/// A transfer.
#[derive(Debug)]
pub struct Transfer {
    /// As written.
    pub spec: TransferSpec,
    /// When to move.
    pub when: Arc<Criterion>,
    /// When to move back; `None`: when `when` holds no more.
    pub release_when: Option<Arc<Criterion>>,
}

/// An endpoint.
#[derive(Debug)]
pub struct Endpoint {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What they say of its group.
    pub place: Place,
}

/// What a tag source may do.
#[derive(Debug)]
pub struct Source {
    spec: TagSource,
    allow: Vec<Option<Pattern>>,
}

/// Everything, made ready. It never changes: another one takes its place.
#[derive(Debug, Default)]
pub struct Model {
    /// By precedence, then name.
    ordered: Vec<Arc<Group>>,
    /// By name; the built-in `default` included.
    pub groups: HashMap<String, Arc<Group>>,
    /// By name.
    pub endpoints: HashMap<String, Arc<Endpoint>>,
    /// By name.
    pub sources: BTreeMap<String, Arc<Source>>,
}

impl Group {
    fn new(resource: &SecurityGroup, criteria: &Criteria) -> Self {
        let selector = resource.spec.selector.as_ref();
        let mut transfers: Vec<Transfer> = resource.spec.transfers.iter().map(|t| Transfer::new(t, criteria)).collect();
        transfers.sort_by_key(|t| t.spec.priority);
        Self {
            name: resource.metadata.name.clone(),
            selector: selector.and_then(|s| s.expression.as_deref()).map(|text| criteria.get(text)),
            transfers,
            resource: Some(resource.clone()),
        }
    }

    fn built_in() -> Self {
        Self { name: DEFAULT_GROUP.to_owned(), resource: None, selector: None, transfers: Vec::new() }
    }

    /// Is it one that endpoints are held in?
    #[must_use]
    pub fn is_quarantine(&self) -> bool {
        self.resource.as_ref().is_some_and(|r| r.spec.quarantine.is_some())
    }

    /// Can endpoints belong to it by its selector?
    #[must_use]
    pub fn selects(&self) -> bool {
        !self.is_quarantine() && self.resource.as_ref().is_some_and(|r| r.spec.selector.is_some())
    }

    /// Labels that its endpoints have.
    #[must_use]
    pub fn match_labels(&self) -> &BTreeMap<String, String> {
        const NONE: &BTreeMap<String, String> = &BTreeMap::new();
        self.resource.as_ref().and_then(|r| r.spec.selector.as_ref()).map_or(NONE, |s| &s.match_labels)
    }

    /// A transfer, by its name.
    #[must_use]
    pub fn transfer(&self, name: &str) -> Option<(usize, &Transfer)> {
        self.transfers.iter().enumerate().find(|(_, t)| t.spec.name == name)
    }

    fn selects_like(&self, other: &Self) -> bool {
        let how = |g: &Self| g.resource.as_ref().map(|r| (r.spec.precedence, r.spec.quarantine.is_some()));
        let selector = |g: &Self| g.resource.as_ref().and_then(|r| r.spec.selector.clone());
        self.name == other.name && how(self) == how(other) && selector(self) == selector(other)
    }
}

impl Transfer {
    fn new(spec: &TransferSpec, criteria: &Criteria) -> Self {
        Self {
            when: criteria.get(&spec.when),
            release_when: spec.release_when.as_deref().map(|text| criteria.get(text)),
            spec: spec.clone(),
        }
    }

    /// Can time change what it says?
    #[must_use]
    pub fn is_aging(&self) -> bool {
        self.when.is_aging() || self.release_when.as_ref().is_some_and(|c| c.is_aging())
    }
}

impl Source {
    fn new(spec: &TagSource) -> Self {
        Self { allow: spec.spec.allow.iter().map(|a| a.tag.parse().ok()).collect(), spec: spec.clone() }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> SourceType {
        self.spec.spec.r#type
    }

    /// Milliseconds without a word after which it is lost.
    #[must_use]
    pub fn lost_after(&self) -> Option<u64> {
        self.spec.spec.lost_after_seconds.map(|s| u64::from(s) * 1000)
    }

    fn rules(&self, tag: &str) -> impl Iterator<Item = &crate::resource::Allow> {
        let all = self.spec.spec.allow.iter().zip(&self.allow);
        all.filter(move |(_, pattern)| pattern.as_ref().is_some_and(|p| p.matches(tag))).map(|(allow, _)| allow)
    }

    /// May it set a tag of this name and severity?
    ///
    /// # Errors
    /// Why not.
    pub fn may_set(&self, tag: &str, severity: u8) -> Result<(), String> {
        let most = self.rules(tag).filter(|a| a.set).map(|a| a.max_severity).max();
        match most {
            Some(most) if severity <= most => Ok(()),
            Some(most) => Err(format!("it may set tag `{tag}` up to severity {most}, not {severity}")),
            None => Err(format!("it may not set tag `{tag}`")),
        }
    }

    /// May it clear tags of this name, of its own?
    ///
    /// # Errors
    /// Why not.
    pub fn may_clear(&self, tag: &str) -> Result<(), String> {
        match self.rules(tag).any(|a| a.clear) {
            true => Ok(()),
            false => Err(format!("it may not clear tag `{tag}`")),
        }
    }
}

impl Model {
    /// What follows from these inputs. What `old` has of it is taken from there.
    #[must_use]
    pub fn build(old: &Self, criteria: &Criteria, inputs: &Inputs<'_>) -> Self {
        let mut ordered: Vec<Arc<Group>> = inputs.groups.iter().map(|r| old.group_of(r, criteria)).collect();
        ordered.sort_by(|a, b| {
            let order = |g: &Group| g.resource.as_ref().map_or(u16::MAX, |r| r.spec.precedence);
            (order(a), &a.name).cmp(&(order(b), &b.name))
        });
        let mut groups: HashMap<String, Arc<Group>> = ordered.iter().map(|g| (g.name.clone(), Arc::clone(g))).collect();
        if !groups.contains_key(DEFAULT_GROUP) {
            let known = old.groups.get(DEFAULT_GROUP).filter(|g| g.resource.is_none());
            groups.insert(DEFAULT_GROUP.to_owned(), known.map_or_else(|| Arc::new(Group::built_in()), Arc::clone));
        }
        let same = |(a, b): (&Arc<Group>, &Arc<Group>)| Arc::ptr_eq(a, b) || a.selects_like(b);
        let same_places = old.ordered.len() == ordered.len() && old.ordered.iter().zip(&ordered).all(same);
        let placing = Placing::among(&ordered);
        let mut endpoints = HashMap::with_capacity(inputs.endpoints.len());
        for (name, labels) in &inputs.endpoints {
            let known = old.endpoints.get(*name).filter(|e| &e.labels == *labels);
            let endpoint = match known {
                Some(known) if same_places => Arc::clone(known),
                _ => {
                    let place = placing.place(name, labels);
                    let known = known.filter(|known| known.place == place);
                    known.map_or_else(|| Arc::new(Endpoint { labels: (*labels).clone(), place }), Arc::clone)
                }
            };
            endpoints.insert((*name).to_owned(), endpoint);
        }
        let source = |spec: &&TagSource| {
            let name = &spec.metadata.name;
            let known = old.sources.get(name).filter(|s| &s.spec == *spec);
            (name.clone(), known.map_or_else(|| Arc::new(Source::new(spec)), Arc::clone))
        };
        Self { groups, endpoints, sources: inputs.sources.iter().map(source).collect(), ordered }
    }

    fn group_of(&self, resource: &SecurityGroup, criteria: &Criteria) -> Arc<Group> {
        let known = self.groups.get(&resource.metadata.name).filter(|g| g.resource.as_ref() == Some(resource));
        known.map_or_else(|| Arc::new(Group::new(resource, criteria)), Arc::clone)
    }

    /// A group, by its name; `default` is always there once there were inputs.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&Arc<Group>> {
        self.groups.get(name)
    }
}
