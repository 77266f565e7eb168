//! What a resource was like when its stack was last applied, so that it is known what has become of it since without
//! its manifest. Only what users write counts: where a VM runs is status, and a status is in no field here. The
//! comparison is pure. Deliberately absent: who changed it since, which the audit log knows.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use uuid::Uuid;

use crate::record::{Stored, is_default};
use crate::{AgencyId, Kind, Name, Scope, TimeMs};

/// A field that leaves every difference alone.
pub const ALL: &str = "all";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub stack: Name,
    pub kind: Kind,
    /// Who owns the resource; none for the cluster.
    #[serde(default, skip_serializing_if = "is_default")]
    pub agency: Option<AgencyId>,
    pub name: Name,
    /// The resource's own; none if it was never made.
    #[serde(default, skip_serializing_if = "is_default")]
    pub id: Option<Uuid>,
    /// The resource's, as the apply last saw it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub revision: u64,
    pub time: TimeMs,
    pub principal: String,
    /// What users write of it, as JSON by paths as manifests have them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fields: BTreeMap<String, String>,
    /// Fields that are left alone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ignored: BTreeSet<String>,
    /// Why the last apply failed at it; empty if it did not.
    #[serde(default, skip_serializing_if = "is_default")]
    pub error: String,
}

impl Stored for Applied {
    const KIND: &'static str = "applied";

    fn key(&self) -> String {
        key(self.agency, &self.stack, self.kind, &self.name)
    }
}

/// By owner first, so that one agency's lie together.
pub fn key(agency: Option<AgencyId>, stack: &Name, kind: Kind, name: &Name) -> String {
    format!("{}/{stack}/{}/{name}", Scope::from(agency), kind.word())
}

/// One field that is not as it was applied; unset is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub path: String,
    pub applied: Option<String>,
    pub now: Option<String>,
}

impl Applied {
    /// What differs in a resource, given as the contract's JSON; empty when it is as it was applied.
    pub fn differences(&self, id: Uuid, now: &Json) -> Vec<Difference> {
        let now = fields(now, &self.ignored);
        let paths: BTreeSet<&String> = self.fields.keys().chain(now.keys()).collect();
        let each = paths.into_iter().map(|path| Difference {
            path: path.clone(),
            applied: self.fields.get(path).cloned(),
            now: now.get(path).cloned(),
        });
        // Another one of the same name was made by somebody else.
        let other = self.id.filter(|known| *known != id).map(|known| Difference {
            path: "id".to_owned(),
            applied: Some(Json::from(known.to_string()).to_string()),
            now: Some(Json::from(id.to_string()).to_string()),
        });
        other.into_iter().chain(each.filter(|one| one.applied != one.now)).collect()
    }
}

/// What users write of a resource, as JSON by paths as manifests have them, without what is left alone.
pub fn fields(resource: &Json, ignored: &BTreeSet<String>) -> BTreeMap<String, String> {
    let kept = |path: &str| {
        let field = path.split(['.', '[']).next().unwrap_or_default();
        !ignored.contains(ALL) && !ignored.contains(field)
    };
    let each = leaves(resource).into_iter().map(|(path, value)| (below(&path).to_owned(), value.to_string()));
    each.filter(|(path, _)| kept(path)).collect()
}

/// What users write of a resource, as single values by their paths.
pub fn leaves(resource: &Json) -> BTreeMap<String, Json> {
    let mut leaves = BTreeMap::new();
    for field in ["display_name", "labels"] {
        walk(&resource["metadata"][field], &format!("metadata.{field}"), &mut leaves);
    }
    walk(&resource["spec"], "spec", &mut leaves);
    leaves
}

fn walk(json: &Json, path: &str, into: &mut BTreeMap<String, Json>) {
    match json {
        Json::Null => {}
        Json::Object(map) => map.iter().for_each(|(key, value)| walk(value, &format!("{path}.{key}"), into)),
        Json::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| walk(value, &format!("{path}[{at}]"), into));
        }
        // What is left out and what is zero are the same in the contract.
        Json::Bool(false) => {}
        Json::String(text) if text.is_empty() || text == "0" => {}
        Json::Number(number) if number.as_u64() == Some(0) => {}
        // 64-bit numbers are strings in the contract's JSON.
        Json::Number(number) => {
            into.insert(path.to_owned(), Json::from(number.to_string()));
        }
        leaf => {
            into.insert(path.to_owned(), leaf.clone());
        }
    }
}

/// A path as it is written in a block: without `spec.` or `metadata.`.
pub fn below(path: &str) -> &str {
    path.strip_prefix("spec.").or_else(|| path.strip_prefix("metadata.")).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn a_vm() -> Json {
        json!({
            "metadata": {"name": "web", "revision": "7", "labels": {"tier": "front"}},
            "spec": {"vcpus": 2, "tpm": false, "disks": [{"volume": "web-0"}]},
            "status": {"node": "n1"},
        })
    }

    fn applied(ignored: &[&str]) -> Applied {
        let ignored = ignored.iter().map(|field| (*field).to_owned()).collect();
        Applied {
            stack: Name::new("site").unwrap(),
            kind: Kind::Vm,
            agency: None,
            name: Name::new("web").unwrap(),
            id: Some(Uuid::from_u128(1)),
            revision: 7,
            time: TimeMs(1),
            principal: "admin:1".into(),
            fields: fields(&a_vm(), &ignored),
            ignored,
            error: String::new(),
        }
    }

    #[test]
    fn what_the_cloud_writes_is_no_difference_and_what_people_write_is() {
        let mut now = a_vm();
        now["status"]["node"] = json!("n2");
        now["metadata"]["revision"] = json!("9");
        assert!(applied(&[]).differences(Uuid::from_u128(1), &now).is_empty());
        now["spec"]["tpm"] = json!(true);
        now["metadata"]["labels"] = json!({"tier": "back"});
        let difference = |path: &str, applied: Option<&str>, now: Option<&str>| Difference {
            path: path.into(),
            applied: applied.map(str::to_owned),
            now: now.map(str::to_owned),
        };
        let found = applied(&[]).differences(Uuid::from_u128(1), &now);
        let labels = difference("labels.tier", Some("\"front\""), Some("\"back\""));
        assert_eq!(found, [labels, difference("tpm", None, Some("true"))]);
    }

    #[test]
    fn what_is_left_alone_is_no_difference_and_another_of_the_same_name_is() {
        let mut now = a_vm();
        now["spec"]["vcpus"] = json!(4);
        now["metadata"]["labels"] = json!({});
        let paths = |applied: Applied, id| {
            let found = applied.differences(Uuid::from_u128(id), &now);
            found.into_iter().map(|one| one.path).collect::<Vec<_>>()
        };
        assert_eq!(paths(applied(&["labels"]), 1), ["vcpus"]);
        assert_eq!(paths(applied(&["all"]), 1), Vec::<String>::new());
        assert_eq!(paths(applied(&["all"]), 2), ["id"]);
    }
}
