//! The same machine without the cloud: a likeness of a running VM that nobody's agent knows, and what moves it with bare
//! `virsh migrate`.
//!
//! Its libvirtds speak over a plain socket of this machine's file system. Its memory goes over TCP between the nodes, by
//! QEMU's own TLS under certificates that are made here, or unencrypted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::Value;
use tamdao_tests::Cloud;
use tamdao_tests::guarded::SHARED;
use uuid::Uuid;

/// The name of the domain.
pub const BARE: &str = "bare";
/// Where QEMU finds its certificates, on every node.
const PKI: &str = "/etc/libvirt/pki-bench";
/// The group ffdhe2048 of RFC 7919. Without one QEMU makes its own for each guest that arrives, which takes half a second or more.
const GROUP: &str = "-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
";

/// Gives QEMU of each node a certificate by which others know it. libvirtd is restarted for that.
///
/// # Errors
/// When a file cannot be written, or libvirtd does not come back.
pub fn certify(cloud: &Cloud) -> Result<()> {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate()?;
    let certificate = ca.self_signed(&key)?.pem();
    let issuer = Issuer::new(ca, key);
    for agent in &cloud.agents {
        let etc = cloud.testbed.directory.join(&agent.name).join("etc/libvirt");
        let pki = etc.join("pki-bench");
        std::fs::create_dir_all(&pki)?;
        let mut leaf = CertificateParams::new(vec![agent.name.clone()])?;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let own = KeyPair::generate()?;
        let signed = leaf.signed_by(&own, &issuer)?.pem();
        std::fs::write(pki.join("ca-cert.pem"), &certificate)?;
        std::fs::write(pki.join("dh-params.pem"), GROUP)?;
        for end in ["server", "client"] {
            std::fs::write(pki.join(format!("{end}-cert.pem")), &signed)?;
            std::fs::write(pki.join(format!("{end}-key.pem")), own.serialize_pem())?;
        }
        let conf = etc.join("qemu.conf");
        let text = std::fs::read_to_string(&conf)?;
        let more = format!("migrate_tls_x509_cert_dir = \"{PKI}\"\nmigrate_tls_x509_verify = 1\n");
        std::fs::write(&conf, text + &more)?;
        cloud.testbed.restart_libvirtd(&agent.name)?;
    }
    Ok(())
}

/// Starts a likeness of a running VM on its node: the same machine, image and seed, a disk of its own in the shared pool.
///
/// # Errors
/// When a part of the VM's document is not as expected, or the domain does not start.
pub fn liken(cloud: &Cloud, vm: &str, node: &str) -> Result<()> {
    let shell = |line: &str| cloud.testbed.shell(node, line);
    let xml = shell(&format!("virsh -c qemu:///system dumpxml tamdao-{vm} --inactive --security-info"))?;
    let part = |before: &str, after: &str| {
        let rest = xml.split_once(before).map(|(_, rest)| rest);
        let found = rest.and_then(|rest| rest.split_once(after)).map(|(part, _)| part.to_owned());
        found.with_context(|| format!("no {before} in {xml}"))
    };
    let disk = format!("{SHARED}/volumes/{}.qcow2", part(&format!("{SHARED}/volumes/"), ".qcow2")?);
    let info: Value = serde_json::from_str(&shell(&format!("qemu-img info -U --output=json {disk}"))?)?;
    let text = |key: &str| info[key].as_str().with_context(|| format!("no {key} in {info}"));
    let (format, backing) = (text("backing-filename-format")?, text("full-backing-filename")?);
    let size = &info["virtual-size"];
    shell(&format!("qemu-img create -q -f qcow2 -F {format} -b {backing} {SHARED}/bare.qcow2 {size}"))?;
    let seed = cloud.agent(node)?.data_dir.join("seeds").join(format!("{vm}.iso"));
    let seed = seed.to_str().context("a plain path")?;
    shell(&format!("cp {seed} {SHARED}/bare.iso"))?;
    let replaced = [
        // Without the metadata it is nobody's, so the agents leave it alone; two nodes cannot write to one log.
        (format!("<metadata>{}</metadata>", part("<metadata>", "</metadata>")?), String::new()),
        (format!("<log {}/>", part("<log ", "/>")?), String::new()),
        (format!("<name>tamdao-{vm}</name>"), format!("<name>{BARE}</name>")),
        (format!("<uuid>{vm}</uuid>"), format!("<uuid>{}</uuid>", Uuid::new_v4())),
        (disk.clone(), format!("{SHARED}/bare.qcow2")),
        (seed.to_owned(), format!("{SHARED}/bare.iso")),
        (part("<mac address='", "'")?, "52:54:00:ba:4e:01".to_owned()),
        (part("<target dev='tap", "'").map(|tap| format!("dev='tap{tap}'"))?, "dev='bare0'".to_owned()),
    ];
    let mut own = xml.clone();
    for (theirs, ours) in replaced {
        ensure!(own.contains(&theirs), "no {theirs} in {xml}");
        own = own.replace(&theirs, &ours);
    }
    std::fs::write(cloud.testbed.directory.join(node).join("etc/libvirt/bare.xml"), own)?;
    shell("virsh -q -c qemu:///system create /etc/libvirt/bare.xml").map(drop)
}

/// Moves it, with the flags that the agents use, but that libvirt itself lets it run. How long `virsh` took.
///
/// # Errors
/// When it does not arrive.
pub fn migrate(cloud: &Cloud, from: &str, to: &str, encrypted: bool) -> Result<Duration> {
    let socket = cloud.testbed.directory.join(to).join("run/libvirt/libvirt-sock");
    let (socket, tls) = (socket.display(), if encrypted { "--tls" } else { "" });
    let line = format!(
        "began=$EPOCHREALTIME; \
         virsh -q -c qemu:///system migrate {BARE} --p2p --abort-on-error --unsafe {tls} \
         --migrateuri tcp://{to} --desturi 'qemu+unix:///system?socket={socket}' >&2 && \
         echo $(( ${{EPOCHREALTIME/./}} - ${{began/./}} ))"
    );
    let took = cloud.testbed.shell(from, &line)?;
    Ok(Duration::from_micros(took.parse().with_context(|| format!("virsh said {took:?}"))?))
}
