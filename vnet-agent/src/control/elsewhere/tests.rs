//! What changes is told step by step as if everything had been made anew.

use std::collections::HashMap;

use super::*;
use crate::elsewhere::fixtures::{elsewhere, endpoint};
use crate::policy::ids::RuleIds;
use crate::policy::live::Tables;
use crate::policy::{Inputs, Previous, Written};
use crate::random::Random;

fn local(name: &str, label: &str) -> Subject {
    let labels = Arc::new(BTreeMap::from([("l".to_owned(), label.to_owned())]));
    let (addresses, learned) = (Vec::new(), Vec::new());
    Subject { name: name.into(), labels, addresses, learned, group: "default".into(), local: true, held: false, network: 0 }
}

/// All endpoints, by name.
fn all(here: &[Subject], elsewhere: &Elsewhere) -> BTreeMap<Arc<str>, Subject> {
    let others = subjects(elsewhere, |name| here.iter().any(|s| *s.name == *name));
    here.iter().cloned().chain(others).map(|s| (Arc::clone(&s.name), s)).collect()
}

#[test]
fn changes_lead_to_what_there_is() {
    let mut random = Random(0x5eed_0011);
    let none: Vec<Subject> = Vec::new();
    let written = Written {
        groups: vec![],
        policies: vec![],
        origins: &HashMap::new(),
        targets: &|_| vec![],
        elsewhere: Some(&|_| vec![]),
    };
    let inputs = Inputs { written, subjects: none.clone(), hosts: vec![], networks: vec![] };
    let mut image = Image::compile(&inputs, Previous::Start { ids: &RuleIds::default(), tables: &Tables::default() }).unwrap();
    let (mut here, mut before) = (none, Arc::new(Elsewhere::default()));
    let names = ["a", "b", "c", "d", "e"];
    let mut twice = 0;
    for _ in 0..300 {
        // Few names, so that they are here and there.
        for name in names {
            if random.one_in(3) {
                here.retain(|s| *s.name != *name);
                here.extend((!random.one_in(2)).then(|| local(name, ["x", "y"][random.index(2)])));
            }
        }
        let mut after = (*before).clone();
        for name in names.into_iter().chain(["h1/tap"]).filter(|_| random.one_in(3)).collect::<Vec<_>>() {
            match random.one_in(2) {
                true => drop(Arc::make_mut(&mut after.endpoints).remove(name)),
                false => {
                    let (host, address) = (["h1", "h2"][random.index(2)], ["10.0.0.1", "10.0.0.2"][random.index(2)]);
                    let e = endpoint(host, ["default", "far"][random.index(2)], &[address]);
                    Arc::make_mut(&mut after.endpoints).extend((*elsewhere(vec![(name, e)]).endpoints).clone());
                }
            }
        }
        let after = if random.one_in(4) { Arc::clone(&before) } else { Arc::new(after) };
        let (changed, gone) = changes(&image, here.clone(), &before, &after);
        let needless = changed.iter().filter(|s| image.endpoint(&s.name).is_some_and(|p| p.subject == **s)).count();
        assert_eq!(needless, 0);
        assert!(gone.iter().all(|name| image.endpoint(name).is_some()), "{gone:?}");
        image = image.with(changed, &gone).unwrap();
        let is: BTreeMap<Arc<str>, Subject> =
            image.endpoints().map(|p| (Arc::clone(&p.subject.name), p.subject.clone())).collect();
        assert_eq!(is, all(&here, &after));
        twice += is.keys().filter(|name| name.contains(" on ")).count();
        before = after;
    }
    assert!(twice > 100, "{twice}");
}
