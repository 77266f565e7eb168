//! How images, volumes and pools are shown.

use tamdao_proto::v1::{Image, ImageKind, Pool, PoolKind, Volume};

use super::{View, head, headers, phase, tail, yes};
use crate::output::{Cell, Table, Tone};
use crate::quantity::{bytes, mib};
use crate::resource::{Resource, word};

impl View for Image {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(&["PHASE", "KIND", "FORMAT", "SIZE", "DISK"], &["CONTROLLERS", "SHA256"], wide)
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let status = self.status.clone().unwrap_or_default();
        let mut cells = head(self);
        cells.push(phase(&self.phase()));
        cells.push(Cell::from(kind(self)));
        cells.push(Cell::from(&status.format));
        cells.push(Cell::from(unless_zero(status.size_bytes, bytes)));
        cells.push(Cell::from(unless_zero(status.virtual_size_mib.into(), mib)));
        if wide {
            cells.push(Cell::from(status.controllers.join(",")));
            cells.push(Cell::toned(&status.sha256, Tone::Faint));
        }
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, _: i64) -> Vec<(&'static str, Cell)> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        vec![
            ("Kind", Cell::from(kind(self))),
            ("Format", Cell::from(&status.format)),
            ("File size", Cell::from(unless_zero(status.size_bytes, bytes))),
            ("Disk size", Cell::from(unless_zero(status.virtual_size_mib.into(), mib))),
            ("Least memory", Cell::from(unless_zero(spec.min_memory_mib.into(), mib))),
            ("SHA-256", Cell::from(&status.sha256)),
            ("URL", Cell::from(&spec.url)),
            ("Controllers", Cell::from(status.controllers.join(", "))),
        ]
    }
}

fn kind(image: &Image) -> String {
    let kind = image.spec.as_ref().map_or(ImageKind::Unspecified, |spec| spec.kind());
    if kind == ImageKind::Unspecified {
        "disk".to_owned()
    } else {
        word(kind.as_str_name(), "IMAGE_KIND_").to_lowercase()
    }
}

impl View for Volume {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(&["PHASE", "SIZE", "USED", "VM", "NODE"], &["POOL", "IMAGE", "KEPT"], wide)
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let status = self.status.clone().unwrap_or_default();
        let mut cells = head(self);
        cells.push(phase(&self.phase()));
        cells.push(Cell::from(unless_zero(size(self), mib)));
        cells.push(Cell::from(unless_zero(status.used_mib, mib)));
        cells.push(Cell::from(&status.vm));
        cells.push(Cell::from(&status.node));
        if wide {
            let spec = self.spec.clone().unwrap_or_default();
            cells.push(Cell::from(&spec.pool));
            cells.push(Cell::from(&spec.image));
            cells.push(Cell::from(yes(spec.keep_on_delete)));
        }
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, _: i64) -> Vec<(&'static str, Cell)> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        vec![
            ("Size", Cell::from(unless_zero(size(self), mib))),
            ("Used", Cell::from(unless_zero(status.used_mib, mib))),
            ("VM", Cell::from(&status.vm)),
            ("Node", Cell::from(&status.node)),
            ("Pool", Cell::from(&spec.pool)),
            ("Image", Cell::from(&spec.image)),
            ("Kept", Cell::from(if spec.keep_on_delete { "when its VM is deleted" } else { "" })),
        ]
    }
}

fn size(volume: &Volume) -> u64 {
    let made = volume.status.as_ref().map_or(0, |status| status.size_mib);
    u64::from(if made == 0 { volume.spec.as_ref().map_or(0, |spec| spec.size_mib) } else { made })
}

impl View for Pool {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(
            &["PHASE", "SHARED", "NODES", "CAPACITY", "USED", "PROMISED"],
            &["PATH", "OVERCOMMIT"],
            wide,
        )
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let spec = self.spec.clone().unwrap_or_default();
        let nodes = self.status.clone().unwrap_or_default().nodes;
        let ready = nodes.iter().filter(|node| node.ready).count();
        let mut cells = head(self);
        cells.push(phase(&self.phase()));
        cells.push(Cell::from(yes(spec.shared)));
        cells.push(Cell::from(format!("{ready}/{}", nodes.len())));
        cells.push(Cell::from(mib(nodes.iter().map(|node| node.capacity_mib).sum())));
        cells.push(Cell::from(mib(nodes.iter().map(|node| node.used_mib).sum())));
        cells.push(Cell::from(mib(nodes.iter().map(|node| node.allocated_mib).sum())));
        if wide {
            cells.push(Cell::from(&spec.path));
            cells.push(Cell::from(format!("{} %", spec.overcommit_percent.max(100))));
        }
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, _: i64) -> Vec<(&'static str, Cell)> {
        let spec = self.spec.clone().unwrap_or_default();
        let kind = if spec.kind() == PoolKind::Dir { "directory" } else { "" };
        vec![
            ("Kind", Cell::from(kind)),
            ("Shared", Cell::from(yes(spec.shared))),
            ("Path", Cell::from(&spec.path)),
            (
                "Nodes",
                Cell::from(if spec.nodes.is_empty() { "all".to_owned() } else { spec.nodes.join(", ") }),
            ),
            ("Overcommit", Cell::from(format!("{} %", spec.overcommit_percent.max(100)))),
            ("Reserve", Cell::from(unless_zero(spec.reserve_mib.into(), mib))),
        ]
    }

    fn sections(&self) -> Vec<(&'static str, Table)> {
        let nodes = self.status.clone().unwrap_or_default().nodes;
        let rows = nodes.iter().map(|node| {
            vec![
                Cell::from(&node.node),
                Cell::toned(yes(node.ready), if node.ready { Tone::Good } else { Tone::Bad }),
                Cell::from(mib(node.capacity_mib)),
                Cell::from(mib(node.used_mib)),
                Cell::from(mib(node.allocated_mib)),
                Cell::from(&node.message),
            ]
        });
        let headers = vec!["NODE", "READY", "CAPACITY", "USED", "PROMISED", "MESSAGE"];
        vec![("On the nodes", Table { headers, rows: rows.collect() })]
    }
}

fn unless_zero(amount: u64, show: impl Fn(u64) -> String) -> String {
    if amount == 0 { String::new() } else { show(amount) }
}
