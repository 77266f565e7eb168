//! What monitoring reads: `/metrics` in Prometheus' text form, and `/healthz`, on a plain local address.
//!
//! Invariant: per-guest series are made at each scrape from what runs then, so that a guest that has left leaves
//! no series behind. Deliberately absent: TLS and secrets; the address should be a local one.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tamdao_proto::agent::v1::Report;
use tokio::sync::watch;

use crate::hypervisor::{DomainStats, Hypervisor};
use crate::image::ImageCache;

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("metrics: {0}")]
    Recorder(#[from] metrics_exporter_prometheus::BuildError),
}

/// What a scrape looks at.
#[derive(Clone)]
pub struct Sources {
    pub hypervisor: Arc<dyn Hypervisor>,
    pub images: Arc<ImageCache>,
    pub reports: watch::Receiver<Option<Arc<Report>>>,
    pub up: watch::Receiver<bool>,
    pub recorder: PrometheusHandle,
}

/// Installs the process's recorder. Once.
///
/// # Errors
/// There is one already.
pub fn recorder() -> Result<PrometheusHandle, MetricsError> {
    Ok(PrometheusBuilder::new().install_recorder()?)
}

/// Serves until dropped.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(address: SocketAddr, sources: Sources) -> Result<(), MetricsError> {
    let listen = |source| MetricsError::Listen { address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(listen)?;
    let routes =
        Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).with_state(sources);
    axum::serve(listener, routes).await.map_err(listen)
}

/// 200 while the hypervisor answers: an agent that is cut off from its leader is well, and does its work.
async fn healthz(Shared(sources): Shared<Sources>) -> impl IntoResponse {
    let report = sources.reports.borrow().clone();
    let session = if *sources.up.borrow() { "session up" } else { "no session" };
    match report {
        Some(report) if report.health.is_empty() => (StatusCode::OK, format!("ok, {session}\n")),
        Some(report) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}, {session}\n", report.health)),
        None => (StatusCode::SERVICE_UNAVAILABLE, "has not looked yet\n".to_owned()),
    }
}

async fn metrics(Shared(sources): Shared<Sources>) -> impl IntoResponse {
    let mut text = sources.recorder.render();
    let report = sources.reports.borrow().clone().unwrap_or_default();
    // A scrape must not wait for a hypervisor that is away; its series are then missing.
    let patience = std::time::Duration::from_secs(5);
    let stats = tokio::time::timeout(patience, sources.hypervisor.stats()).await;
    let stats = stats.ok().and_then(Result::ok).unwrap_or_default();
    gauges(&mut text, &report, &sources);
    guests(&mut text, &stats);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

fn family(text: &mut String, name: &str, kind: &str, help: &str, rows: &[(String, f64)]) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in rows {
        let _ = if labels.is_empty() {
            writeln!(text, "{name} {value}")
        } else {
            writeln!(text, "{name}{{{labels}}} {value}")
        };
    }
}

fn gauges(text: &mut String, report: &Report, sources: &Sources) {
    let one = |value: f64| vec![(String::new(), value)];
    let mut states = std::collections::BTreeMap::<&str, u32>::new();
    for vm in &report.vms {
        *states.entry(vm.state().as_str_name().trim_start_matches("GUEST_STATE_")).or_default() += 1;
    }
    let states: Vec<_> = states
        .into_iter()
        .map(|(state, count)| (format!("state=\"{}\"", state.to_lowercase()), f64::from(count)))
        .collect();
    family(text, "tamdao_agent_guests", "gauge", "Guests by state.", &states);
    let up = f64::from(u8::from(*sources.up.borrow()));
    family(text, "tamdao_agent_session", "gauge", "1 while the leader is heard.", &one(up));
    let well = f64::from(u8::from(report.health.is_empty()));
    family(text, "tamdao_agent_hypervisor_up", "gauge", "1 while libvirt answers.", &one(well));
    let foreign = f64::from(report.foreign);
    family(text, "tamdao_agent_foreign_domains", "gauge", "Domains that are not ours.", &one(foreign));
    let bytes = sources.images.bytes() as f64;
    family(text, "tamdao_agent_image_cache_bytes", "gauge", "What the image cache holds.", &one(bytes));
    let count = report.cached_images.len() as f64;
    family(text, "tamdao_agent_image_cache_images", "gauge", "Images in the cache.", &one(count));
    let pool = |value: fn(&tamdao_proto::agent::v1::PoolReport) -> f64| -> Vec<_> {
        report.pools.iter().map(|pool| (format!("pool=\"{}\"", pool.pool_id), value(pool))).collect()
    };
    const MIB: f64 = 1_048_576.0;
    let ready = pool(|pool| f64::from(u8::from(pool.ready)));
    family(text, "tamdao_agent_pool_ready", "gauge", "1 while the pool can be used.", &ready);
    let capacity = pool(|pool| pool.capacity_mib as f64 * MIB);
    family(text, "tamdao_agent_pool_capacity_bytes", "gauge", "Size of the pool's file system.", &capacity);
    let used = pool(|pool| pool.used_mib as f64 * MIB);
    family(text, "tamdao_agent_pool_used_bytes", "gauge", "What is taken in the pool.", &used);
}

fn guests(text: &mut String, stats: &[DomainStats]) {
    let each = |value: fn(&DomainStats) -> f64| -> Vec<_> {
        stats.iter().map(|guest| (format!("vm=\"{}\"", guest.vm), value(guest))).collect()
    };
    let cpu = each(|guest| guest.cpu_ns as f64 / 1e9);
    family(text, "tamdao_vm_cpu_seconds_total", "counter", "CPU time of QEMU and its guest.", &cpu);
    let rss = each(|guest| guest.memory_rss_kib as f64 * 1024.0);
    family(text, "tamdao_vm_memory_rss_bytes", "gauge", "Host memory that QEMU takes.", &rss);
    let memory = each(|guest| guest.memory_kib as f64 * 1024.0);
    family(text, "tamdao_vm_memory_bytes", "gauge", "The guest's memory less its balloon.", &memory);
    type Disk = fn(&crate::hypervisor::DiskStats) -> u64;
    let disks: [(&str, &str, Disk); 4] = [
        ("tamdao_vm_disk_read_bytes_total", "Bytes read.", |disk| disk.read_bytes),
        ("tamdao_vm_disk_write_bytes_total", "Bytes written.", |disk| disk.write_bytes),
        ("tamdao_vm_disk_reads_total", "Read requests.", |disk| disk.read_requests),
        ("tamdao_vm_disk_writes_total", "Write requests.", |disk| disk.write_requests),
    ];
    for (name, help, value) in disks {
        let mut rows = Vec::new();
        for guest in stats {
            for disk in &guest.disks {
                rows.push((format!("vm=\"{}\",device=\"{}\"", guest.vm, disk.device), value(disk) as f64));
            }
        }
        family(text, name, "counter", help, &rows);
    }
    type PortValue = fn(&crate::hypervisor::PortStats) -> u64;
    let ports: [(&str, &str, PortValue); 4] = [
        ("tamdao_vm_net_received_bytes_total", "Bytes that the guest received.", |port| port.received_bytes),
        ("tamdao_vm_net_sent_bytes_total", "Bytes that the guest sent.", |port| port.sent_bytes),
        ("tamdao_vm_net_received_packets_total", "Packets that the guest received.", |port| {
            port.received_packets
        }),
        ("tamdao_vm_net_sent_packets_total", "Packets that the guest sent.", |port| port.sent_packets),
    ];
    for (name, help, value) in ports {
        let mut rows = Vec::new();
        for guest in stats {
            for port in &guest.ports {
                rows.push((format!("vm=\"{}\",tap=\"{}\"", guest.vm, port.tap), value(port) as f64));
            }
        }
        family(text, name, "counter", help, &rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::{DiskStats, PortStats};

    #[test]
    fn guests_series_read() {
        let stats = DomainStats {
            vm: uuid::Uuid::from_u128(7),
            cpu_ns: 1_500_000_000,
            memory_rss_kib: 2,
            memory_kib: 4,
            disks: vec![DiskStats { device: "vda".into(), read_bytes: 5, ..DiskStats::default() }],
            ports: vec![PortStats { tap: "tap0".into(), sent_bytes: 6, ..PortStats::default() }],
        };
        let mut text = String::new();
        guests(&mut text, &[stats]);
        insta::assert_snapshot!(text);
    }
}
