//! The typed client: gRPC with TLS and a token. A call goes to the next controller when one is dead or has no quorum, and
//! any other answer is final; a test that means one controller asks for its wire.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tamdao_proto::v1::vm_service_client::VmServiceClient;
use tamdao_proto::v1::{
    Event, GetVmRequest, ListEventsRequest, ListVmsRequest, Vm, VmPhase,
    event_service_client::EventServiceClient,
};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::Result;

/// What requests are sent on.
pub type Wire = InterceptedService<Channel, Bearer>;

/// Puts the token into a request.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// The controllers of one cloud, as a client sees them.
#[derive(Clone)]
pub struct Api {
    wires: Arc<[Wire]>,
}

impl Api {
    /// Prepares the connections; nothing is dialled before the first request. Without a token nobody asks.
    ///
    /// # Errors
    /// When the CA or the token cannot be used.
    pub fn new(addresses: &[String], ca: &str, token: Option<&str>) -> Result<Self> {
        let bearer = token.map(|token| MetadataValue::try_from(format!("Bearer {token}"))).transpose();
        let bearer = Bearer(bearer.context("the token")?);
        let wire = |address: &String| -> Result<Wire> {
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
            let endpoint = Endpoint::from_shared(format!("https://{address}"))?
                .connect_timeout(Duration::from_secs(3))
                .timeout(Duration::from_secs(20))
                .tls_config(tls)?;
            Ok(Wire::new(endpoint.connect_lazy(), bearer.clone()))
        };
        Ok(Self { wires: addresses.iter().map(wire).collect::<Result<_>>()? })
    }

    /// What is sent on this goes to one controller only.
    pub fn wire(&self, controller: usize) -> Wire {
        self.wires[controller].clone()
    }

    /// How many controllers it knows.
    pub fn count(&self) -> usize {
        self.wires.len()
    }

    /// Asks one controller after the other until one can answer.
    ///
    /// # Errors
    /// The final answer of one, or what the last one said when none could.
    pub async fn call<T>(
        &self,
        send: impl AsyncFn(Wire) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let mut last = Status::unavailable("there are no controllers");
        for wire in self.wires.iter() {
            match send(wire.clone()).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if passes(&status) => last = status,
                Err(status) => return Err(status),
            }
        }
        Err(last)
    }

    /// # Errors
    /// As [`Self::call`].
    pub async fn vm(&self, agency: &str, name: &str) -> Result<Vm, Status> {
        self.call(async |wire| {
            let request = GetVmRequest { agency: agency.to_owned(), name: name.to_owned() };
            VmServiceClient::new(wire).get_vm(request).await
        })
        .await
    }

    /// All VMs of all agencies.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn vms(&self) -> Result<Vec<Vm>, Status> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListVmsRequest { page_size: 1000, page_token, ..Default::default() };
            let page =
                self.call(async |wire| VmServiceClient::new(wire).list_vms(request.clone()).await).await?;
            all.extend(page.vms);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// The events about one resource, in the order of the API.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn events(&self, agency: &str, kind: &str, name: &str) -> Result<Vec<Event>, Status> {
        let request = ListEventsRequest {
            page_size: 1000,
            agency: agency.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            ..Default::default()
        };
        let page =
            self.call(async |wire| EventServiceClient::new(wire).list_events(request.clone()).await).await?;
        Ok(page.events)
    }
}

/// True for what another controller may answer better: no quorum, or the connection is broken.
pub fn passes(status: &Status) -> bool {
    use std::error::Error;
    status.code() == Code::Unavailable || status.source().is_some()
}

/// A VM in one line, for messages.
pub fn told(vm: &Vm) -> String {
    let name = vm.metadata.as_ref().map_or("", |metadata| &metadata.name);
    let status = vm.status.clone().unwrap_or_default();
    let phase = status.phase().as_str_name();
    let mut text = format!("{name} is {phase} on {:?}, incarnation {}", status.node, status.incarnation);
    for condition in &status.conditions {
        text.push_str(&format!(
            "; {} {} {}: {}",
            condition.r#type,
            condition.status().as_str_name().trim_start_matches("CONDITION_STATUS_"),
            condition.reason,
            condition.message
        ));
    }
    text
}

/// The phase of a VM.
pub fn phase(vm: &Vm) -> VmPhase {
    vm.status.as_ref().map_or(VmPhase::Unspecified, |status| status.phase())
}

/// The name of the node that holds a VM.
pub fn node(vm: &Vm) -> &str {
    vm.status.as_ref().map_or("", |status| &status.node)
}

/// The addresses of a VM without their prefix length.
pub fn addresses(vm: &Vm) -> Vec<String> {
    let interfaces = vm.status.iter().flat_map(|status| &status.interfaces);
    let bare = |address: &String| address.split('/').next().unwrap_or_default().to_owned();
    interfaces.flat_map(|interface| interface.addresses.iter().map(bare)).collect()
}
