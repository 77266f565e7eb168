//! What users give in words and files, read into the contract's own form: resources as YAML or JSON, "key=value" pairs,
//! disks, networks, keys. Only the form is checked; fields that do not exist are errors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use tamdao_proto::v1::{
    AddressRange, Bmc, Disk, DiskTemplate, Interface, PlacementRule, PlacementRuleKind, Subnet, disk,
};

use crate::problem::Problem;
use crate::quantity::parse_mib;
use crate::resource::Resource;

/// Reads a resource from a file in the API's own form; "-" is stdin.
pub fn resource<R: Resource>(file: &Path) -> Result<R> {
    let text = text(file)?;
    // YAML contains JSON.
    serde_yaml_ng::from_str(&text).map_err(|error| {
        Problem::usage(format!("{} is not a {} in the API's form", file.display(), R::noun()))
            .detail(error.to_string())
            .hint(format!("see the form of one that exists with `tamdao {} get NAME -o yaml`", R::noun()))
            .into()
    })
}

/// Reads a whole file; "-" is stdin.
pub fn text(file: &Path) -> Result<String> {
    let read = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    read.map_err(|error| Problem::usage(format!("cannot read {}: {error}", file.display())).into())
}

/// "key=value" pairs.
pub fn pairs(flag: &str, given: &[String]) -> Result<BTreeMap<String, String>> {
    let split = |pair: &String| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Problem::usage(format!("--{flag} {pair}: expected KEY=VALUE")).into()),
    };
    given.iter().map(split).collect()
}

/// A BMC: "URL,user=NAME,password-file=FILE,ca=FILE".
pub fn bmc(text: &str) -> Result<Bmc> {
    let mut parts = text.split(',');
    let mut bmc = Bmc { url: parts.next().unwrap_or_default().to_owned(), ..Bmc::default() };
    for part in parts {
        match part.split_once('=') {
            Some(("user", name)) => name.clone_into(&mut bmc.username),
            Some(("password-file", file)) => {
                bmc.password = self::text(Path::new(file))?.trim_end_matches(['\r', '\n']).to_owned();
            }
            Some(("ca", file)) => bmc.ca_certificates = self::text(Path::new(file))?,
            Some(("fingerprint", digest)) => digest.clone_into(&mut bmc.fingerprint),
            None if part == "unverified" => bmc.unverified = true,
            // It may be a password that somebody has put on the line.
            _ => {
                let message = "--bmc: expected URL,user=NAME,password-file=FILE and one of ca=FILE, fingerprint=SHA256, \
                               unverified";
                return Err(Problem::usage(message).into());
            }
        }
    }
    Ok(bmc)
}

/// Changes a map by "key=value" to set and "key-" to remove.
pub fn change_pairs(flag: &str, map: &mut BTreeMap<String, String>, given: &[String]) -> Result<()> {
    for pair in given {
        match (pair.split_once('='), pair.strip_suffix('-')) {
            (Some((key, value)), _) if !key.is_empty() => {
                map.insert(key.to_owned(), value.to_owned());
            }
            (None, Some(key)) if !key.is_empty() => {
                map.remove(key);
            }
            _ => {
                return Err(Problem::usage(format!(
                    "--{flag} {pair}: expected KEY=VALUE, or KEY- to remove"
                ))
                .into());
            }
        }
    }
    Ok(())
}

/// Changes a quota by "vcpus=64" or "memory=256G" to set and "vcpus-" to remove. Sizes may leave out what their measure
/// is counted in.
pub fn change_quota(quota: &mut BTreeMap<String, u64>, given: &[String]) -> Result<()> {
    for text in given {
        let (word, amount) = match (text.split_once('='), text.strip_suffix('-')) {
            (Some((word, amount)), _) => (word, Some(amount)),
            (None, Some(word)) => (word, None),
            (None, None) => (text.as_str(), Some("")),
        };
        let measure = match word {
            "memory" | "disk" | "protected_memory" => format!("{word}_mib"),
            word => word.to_owned(),
        };
        let Some(amount) = amount else {
            quota.remove(&measure);
            continue;
        };
        let read = match measure.ends_with("_mib") && amount.parse::<u64>().is_err() {
            true => parse_mib(amount).map(u64::from),
            false => amount.parse().map_err(|_| "expected MEASURE=AMOUNT, or MEASURE- to remove".to_owned()),
        };
        let most = read.map_err(|message| Problem::usage(format!("--quota {text}: {message}")))?;
        quota.insert(measure, most);
    }
    Ok(())
}

/// Changes a list of names by "NAME" to add and "NAME-" to remove; no name ends in a hyphen.
pub fn change_names(list: &mut Vec<String>, given: &[String]) {
    for text in given {
        let name = text.strip_suffix('-').unwrap_or(text);
        list.retain(|other| other != name);
        if name == text {
            list.push(name.to_owned());
        }
    }
}

/// Changes failure domains by "rack=r2", "feed=A,B" to set and "rack-" to remove. A key that is given several times
/// gets the values of all.
pub fn change_domains(
    map: &mut BTreeMap<String, tamdao_proto::v1::DomainValues>,
    given: &[String],
) -> Result<()> {
    let mut begun = BTreeSet::new();
    for pair in given {
        match (pair.split_once('='), pair.strip_suffix('-')) {
            (Some((key, values)), _) if !key.is_empty() && !values.is_empty() => {
                let of_key = map.entry(key.to_owned()).or_default();
                if begun.insert(key) {
                    of_key.values.clear();
                }
                of_key.values.extend(values.split(',').map(str::to_owned));
            }
            (None, Some(key)) if !key.is_empty() => {
                map.remove(key);
            }
            _ => {
                let problem = Problem::usage(format!("--failure-domain {pair}: expected KEY=VALUE[,VALUE]"));
                return Err(problem.hint("rack=r2, feed=A,B, or rack- to remove").into());
            }
        }
    }
    Ok(())
}

/// The disks of a new VM in order: the boot disk from the image, further ones, existing volumes, cdroms.
pub fn disks(
    image: Option<&str>,
    given: &[String],
    volumes: &[String],
    isos: &[String],
) -> Result<Vec<Disk>> {
    let mut boot = image.map(|image| DiskTemplate { image: image.to_owned(), ..Default::default() });
    let mut sized = false;
    let mut more = Vec::new();
    for text in given {
        match (parse_mib(text), &mut boot) {
            (Ok(size), Some(boot)) if !sized => {
                boot.size_mib = size;
                sized = true;
            }
            (Ok(size), _) => more.push(DiskTemplate { size_mib: size, ..Default::default() }),
            (Err(_), _) => more.push(disk(text)?),
        }
    }
    let made = boot
        .into_iter()
        .chain(more)
        .map(|made| Disk { source: Some(disk::Source::Create(made)), ..Default::default() });
    let held = volumes
        .iter()
        .map(|name| Disk { source: Some(disk::Source::Volume(name.clone())), ..Default::default() });
    let cdroms = isos.iter().map(|name| Disk {
        source: Some(disk::Source::Iso(name.clone())),
        kind: tamdao_proto::v1::DiskKind::Cdrom.into(),
        ..Default::default()
    });
    Ok(made.chain(held).chain(cdroms).collect())
}

fn disk(text: &str) -> Result<DiskTemplate> {
    let wrong = |what: String| {
        Problem::usage(format!("--disk {text}: {what}"))
            .hint("--disk 10G, or --disk size=10G,image=NAME,pool=NAME,keep")
    };
    let mut made = DiskTemplate::default();
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("size", size)) => {
                made.size_mib = parse_mib(size).map_err(|error| wrong(format!("size {error}")))?
            }
            Some(("image", image)) => image.clone_into(&mut made.image),
            Some(("pool", pool)) => pool.clone_into(&mut made.pool),
            None if part == "keep" => made.keep_on_delete = true,
            None if part.starts_with(|c: char| c.is_ascii_digit()) => {
                made.size_mib = parse_mib(part).map_err(wrong)?;
            }
            _ => return Err(wrong(format!("{part} is not a part of a disk")).into()),
        }
    }
    if made.size_mib == 0 && made.image.is_empty() {
        return Err(wrong("a disk without image needs a size".to_owned()).into());
    }
    Ok(made)
}

/// A network interface: "NAME[,address=ADDRESS][,mac=MAC]".
pub fn interface(text: &str) -> Result<Interface> {
    let mut parts = text.split(',');
    let mut interface =
        Interface { network: parts.next().unwrap_or_default().to_owned(), ..Default::default() };
    for part in parts {
        match part.split_once('=') {
            Some(("address", address)) => interface.addresses.push(address.to_owned()),
            Some(("mac", mac)) => mac.clone_into(&mut interface.mac),
            _ => {
                let problem =
                    Problem::usage(format!("--network {text}: {part} is not a part of an interface"));
                return Err(problem.hint("--network NAME,address=10.20.0.9,mac=52:54:00:12:34:56").into());
            }
        }
    }
    Ok(interface)
}

/// A subnet: "CIDR[,gateway=ADDRESS][,range=FIRST-LAST]".
pub fn subnet(text: &str) -> Result<Subnet> {
    let wrong = |what: &str| {
        let problem = Problem::usage(format!("--subnet {text}: {what}"));
        problem.hint("--subnet 10.20.0.0/24,gateway=10.20.0.1,range=10.20.0.100-10.20.0.200")
    };
    let mut parts = text.split(',');
    let mut subnet = Subnet { cidr: parts.next().unwrap_or_default().to_owned(), ..Default::default() };
    for part in parts {
        match part.split_once('=') {
            Some(("gateway", gateway)) => gateway.clone_into(&mut subnet.gateway),
            Some(("range", range)) => {
                let (first, last) = range.split_once('-').ok_or_else(|| wrong("a range is FIRST-LAST"))?;
                subnet.ranges.push(AddressRange { first: first.to_owned(), last: last.to_owned() });
            }
            _ => return Err(wrong(&format!("{part} is not a part of a subnet")).into()),
        }
    }
    Ok(subnet)
}

/// A rule of a placement group: "apart|together[,by=node|KEY][,at-most=N][,preferred]".
pub fn rule(text: &str) -> Result<PlacementRule> {
    let wrong = |what: String| {
        let problem = Problem::usage(format!("--rule {text}: {what}"));
        problem.hint("--rule apart, --rule apart,by=rack,at-most=2, or --rule together,by=rack,preferred")
    };
    let mut rule = PlacementRule::default();
    for part in text.split(',') {
        match part.split_once('=') {
            None if part == "apart" => rule.set_kind(PlacementRuleKind::Apart),
            None if part == "together" => rule.set_kind(PlacementRuleKind::Together),
            None if part == "preferred" => rule.preferred = true,
            Some(("by", key)) => key.clone_into(&mut rule.by),
            Some(("at-most", count)) => {
                rule.at_most = count.parse().map_err(|_| wrong(format!("{count} is not a number")))?;
            }
            _ => return Err(wrong(format!("{part} is not a part of a rule")).into()),
        }
    }
    if rule.kind() == PlacementRuleKind::Unspecified {
        return Err(wrong("must say apart or together".to_owned()).into());
    }
    Ok(rule)
}

/// Public keys: each given as itself, or as a file with one or more.
pub fn ssh_keys(given: &[String]) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for key in given {
        if ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| key.starts_with(kind)) && key.contains(' ') {
            keys.push(key.trim().to_owned());
            continue;
        }
        let text = text(Path::new(key))?;
        if text.contains("PRIVATE KEY") {
            let problem = Problem::usage(format!("{key} is a private key"));
            return Err(problem.hint(format!("give the public one: {key}.pub")).into());
        }
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        keys.extend(lines.map(str::to_owned));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_plain_size_is_the_boot_disk_of_the_image() {
        let disks =
            disks(Some("debian"), &strings(&["10G", "size=5G,keep", "1G"]), &[], &strings(&["cd"])).unwrap();
        let shown: Vec<String> = disks.iter().map(|disk| serde_json::to_string(disk).unwrap()).collect();
        assert_eq!(
            shown,
            [
                r#"{"create":{"size_mib":10240,"image":"debian"}}"#,
                r#"{"create":{"size_mib":5120,"keep_on_delete":true}}"#,
                r#"{"create":{"size_mib":1024}}"#,
                r#"{"kind":"DISK_KIND_CDROM","iso":"cd"}"#,
            ]
        );
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(disks(None, &strings(&["10"]), &[], &[]).is_err());
        assert!(disks(None, &strings(&["pool=fast"]), &[], &[]).is_err());
        assert!(disks(None, &strings(&["size=5G,colour=red"]), &[], &[]).is_err());
        assert!(interface("lan,ip=1.2.3.4").is_err());
        assert!(subnet("10.0.0.0/24,range=10.0.0.5").is_err());
        for text in ["", "by=rack", "apart,at-most=few", "apart,colour=red", "near"] {
            assert!(rule(text).is_err(), "{text}");
        }
        assert!(pairs("label", &strings(&["x"])).is_err());
    }

    #[test]
    fn a_failure_domain_given_twice_has_both_values() {
        let mut domains = BTreeMap::new();
        change_domains(&mut domains, &strings(&["rack=r1", "feed=A"])).unwrap();
        change_domains(&mut domains, &strings(&["feed=B", "feed=C,D", "rack-"])).unwrap();
        assert_eq!(domains.len(), 1);
        assert_eq!(domains["feed"].values, ["B", "C", "D"]);
        assert!(change_domains(&mut domains, &strings(&["feed="])).is_err());
    }

    #[test]
    fn pairs_are_set_and_removed() {
        let mut map = pairs("label", &strings(&["a=1", "b=2"])).unwrap();
        change_pairs("label", &mut map, &strings(&["a-", "b=3", "c="])).unwrap();
        assert_eq!(crate::view::pairs(&map), "b=3,c=");
    }
}
