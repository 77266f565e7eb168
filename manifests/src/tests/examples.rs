//! The manifests of deploy/examples: right, in the normal form, and with the figures that they are about.

use std::path::{Path, PathBuf};

use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/vinh-phuc")
}

fn province() -> Manifest {
    let mut load = |dir: &str| {
        let entries = std::fs::read_dir(folder().join(dir)).map_err(|error| error.to_string())?;
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "tf"));
        paths.sort();
        let name = |path: &Path| path.strip_prefix(folder()).expect("it lies there").display().to_string();
        let read = |path: &PathBuf| File {
            name: name(path),
            text: std::fs::read_to_string(path).expect("a readable file"),
        };
        Ok(paths.iter().map(read).collect())
    };
    Manifest::read(&mut load)
        .unwrap_or_else(|faulty| panic!("{}", crate::tell(&faulty.files, &faulty.faults)))
}

#[test]
fn the_province_has_what_its_public_figures_say() {
    let (manifest, live) = (province(), Live::new());
    let read = |path: &str| std::fs::read_to_string(folder().join(path)).map_err(|error| error.to_string());
    let inputs = Inputs { read: &read, ..inputs(&live) };
    let expanded = crate::validate(&manifest, &inputs)
        .unwrap_or_else(|faults| panic!("{}", crate::tell(&manifest.files, &faults)));
    let all = |kind: &str| {
        let of_kind = expanded.resources.iter().filter(|one| one.place.kind == kind);
        of_kind.map(|one| one.says.json.clone()).collect::<Vec<_>>()
    };
    let level =
        |level: &str| all("agency").iter().filter(|one| one["metadata"]["labels"]["level"] == level).count();
    assert_eq!(["province", "district", "commune", "health"].map(level), [24, 9, 136, 159]);
    let stations = all("agency");
    let stations = stations.iter().filter_map(|one| one["metadata"]["name"].as_str());
    assert_eq!(stations.filter(|name| name.starts_with("tyt-")).count(), 138);
    let groups = all("placement_group");
    let pairs = groups.iter().filter(|one| one["metadata"]["name"].as_str().unwrap().starts_with("db-"));
    assert_eq!(pairs.count(), 13 + 2);
    assert_eq!(
        expanded.outputs["databases_by_place"].0.to_json(),
        json!({"centre": 13, "office": 2, "ministry": 5, "provider": 5})
    );
    let names = Names::default();
    for one in &expanded.resources {
        let says = Json::Object(one.says.json.clone());
        let kept = judge::create(&one.place.kind, &says, &names).expect("it was validated");
        let (written, kept) = (&says["metadata"]["display_name"], &kept["metadata"]["display_name"]);
        assert_eq!(written.as_str().unwrap_or_default(), kept.as_str().unwrap_or_default(), "it is composed");
    }
}

#[test]
fn the_province_is_in_the_normal_form() {
    for file in province().files {
        assert_eq!(crate::format(&file).expect("it can be parsed"), file.text, "{}", file.name);
    }
}
