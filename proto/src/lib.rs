//! The wire: generated code of `tamdao.v1` (public), `tamdao.agent.v1` (controller⇄agent) and `tamdao.raft.v1`
//! (controller⇄controller), the descriptor set and the OpenAPI document. There is no logic here.
//! Services are behind the feature `grpc` and their REST face behind `rest`, so that pure crates can have the
//! messages without tonic and tokio.

/// The compiled protos with their comments, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The public contract as an OpenAPI 3.1 document, as generated: the controller serves it.
pub const OPENAPI: &str = include_str!(concat!(env!("OUT_DIR"), "/tamdao.v1.openapi.json"));

/// A request of the public contract that has one answer. A client that goes by this compiles the way to the wire
/// once and not once for each method.
pub trait Unary: prost::Message {
    type Response: prost::Message + Default;
    /// The method in a request's path, `/tamdao.v1.VmService/GetVm`.
    const PATH: &'static str;
}

/// `tamdao.v1`: the public contract.
#[allow(clippy::all)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/tamdao.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/tamdao.v1.serde.rs"));
    include!(concat!(env!("OUT_DIR"), "/tamdao.v1.unary.rs"));
    #[cfg(feature = "rest")]
    include!(concat!(env!("OUT_DIR"), "/tamdao.v1.rest.rs"));
}

pub mod agent {
    /// `tamdao.agent.v1`: what controllers and agents say to each other.
    #[allow(clippy::all)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/tamdao.agent.v1.rs"));
        include!(concat!(env!("OUT_DIR"), "/tamdao.agent.v1.serde.rs"));
    }
}

pub mod raft {
    /// `tamdao.raft.v1`: what controllers say to each other for the replicated store.
    #[allow(clippy::all)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/tamdao.raft.v1.rs"));
    }
}

/// The REST face: routes of the `google.api.http` annotations over the same services.
#[allow(clippy::all)]
#[cfg(feature = "rest")]
pub mod rest {
    mod tamdao {
        pub use crate::v1;
    }
    include!(concat!(env!("OUT_DIR"), "/transcoder.rest.rs"));
}
