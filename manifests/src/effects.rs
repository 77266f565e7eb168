//! What a change means for those who use a resource: how long it is away, and what is lost for good. In words, for people
//! who decide by them; each sentence says what the contract promises and no more.

use serde_json::Value as Json;

use crate::compare::Compared;
use crate::expand::Place;
use crate::manifest::Live;

/// The downtime of an update in place; empty for none.
pub fn of_update(kind: &str, compared: &Compared) -> String {
    let touches = |fields: &[&str]| {
        let mut paths =
            compared.differences.iter().map(|one| one.path.split(['.', '[']).next().unwrap_or_default());
        paths.any(|path| fields.contains(&path))
    };
    let mut words = Vec::new();
    match kind {
        "vm" => {
            if compared.resize {
                words.push("none where the guest takes its new size while it runs, else the new size waits for its next start");
            }
            if touches(&["ssh_keys", "user_data"]) {
                words.push("none; keys and user data are taken at the next cold start");
            }
            if touches(&["placement_groups", "isolation_class", "node_labels", "forbidden_node_labels"]) {
                words.push("none; what decides the place is read at the next placement");
            }
            if !compared.volumes.is_empty() {
                words.push(
                    "none; a volume grows while its VM is off, and the guest then grows its file system",
                );
            }
        }
        "volume" if touches(&["size_mib"]) => {
            words.push("none; a volume grows while its VM is off, and the guest then grows its file system")
        }
        _ => {}
    }
    words.join("; ")
}

/// The downtime of a replacement.
pub fn of_replace(kind: &str) -> &'static str {
    match kind {
        "vm" => "from the stop of the old VM until the new one has booted",
        "volume" => "from the removal of the old volume until its VM has been made anew",
        "network" | "image" | "pool" => "of whatever uses it, which is replaced with it",
        _ => "",
    }
}

/// The downtime of a removal.
pub fn of_destroy(kind: &str) -> &'static str {
    match kind {
        "vm" => "it is stopped for good",
        _ => "",
    }
}

/// What is lost for good when a resource goes; empty for nothing.
pub fn loss(place: &Place, is: &Json, live: &Live) -> String {
    let size = |spec: &Json| spec["size_mib"].as_u64().unwrap_or(0);
    match place.kind.as_str() {
        "volume" => format!("all that is on the volume {} ({} MiB)", place.name, size(&is["spec"])),
        "image" if is["spec"]["url"].as_str().unwrap_or_default().is_empty() => {
            format!("the file of the image {}, which was uploaded", place.name)
        }
        "vm" => {
            let disks = is["spec"]["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
            let lost: Vec<String> = disks
                .iter()
                .filter_map(|disk| disk["volume"].as_str())
                .filter_map(|name| {
                    let kind = "volume".to_owned();
                    let at = Place { kind, agency: place.agency.clone(), name: name.to_owned() };
                    let spec = live.get(&at).map(|volume| &volume["spec"]);
                    let kept = spec.is_some_and(|spec| spec["keep_on_delete"] == true);
                    // A volume that was made for a VM is named after it; one that was only attached stays.
                    let made = name.starts_with(&format!("{}-", place.name)) || place.name.len() > 50;
                    (made && !kept).then(|| match spec {
                        Some(spec) => format!("{name} ({} MiB)", size(spec)),
                        None => name.to_owned(),
                    })
                })
                .collect();
            if lost.is_empty() {
                String::new()
            } else {
                format!("all that is on its disks: {}", lost.join(", "))
            }
        }
        _ => String::new(),
    }
}
