//! All methods of the protos as data: which path means which method, and which ones only read.
//!
//! Its invariant: everything here is read from the descriptors, so that gRPC and REST can never be treated
//! differently and a new method needs no second entry. A method reads if its `google.api.http` rule is a GET.
//! Deliberately absent: what the methods do.

use std::collections::HashMap;
use std::sync::LazyLock;

use http::Method as Verb;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Services whose answers hold what only the leader remembers: who is heard, and how far behind they are.
const ANSWERED_BY_THE_LEADER: [&str; 5] = [
    "tamdao.v1.BackupService",
    "tamdao.v1.ControllerService",
    "tamdao.v1.MoveService",
    "tamdao.v1.NodeService",
    "tamdao.v1.RecoveryService",
];

/// One method of one service.
#[derive(Debug, PartialEq, Eq)]
pub struct Method {
    /// As gRPC's path has it, "/tamdao.v1.VmService/CreateVm".
    pub path: String,
    /// The part before the method, "tamdao.v1.VmService".
    pub service: String,
    /// It changes nothing and needs nothing that only the leader remembers, so any controller may answer.
    pub reads: bool,
    /// It may change something, or opens a console: it is got by no GET.
    pub changes: bool,
    /// Its request or its answer is a stream.
    pub streams: bool,
    /// Its request is a stream, so it cannot be sent twice.
    pub request_streams: bool,
    /// The last part of its request's name, "CreateVmRequest".
    input: String,
    /// Where in the request's binary form the texts are that say whom it concerns.
    texts: Vec<(&'static str, Vec<u32>)>,
    routes: Vec<Route>,
}

/// The paths of such texts.
const TEXTS: [&str; 3] = ["agency", "name", "agency.spec.parent"];

/// The path of a name within the resource that a request brings, whatever field that is in.
pub const RESOURCE_NAME: &str = "metadata.name";

#[derive(Debug, PartialEq, Eq)]
struct Route {
    verb: Verb,
    /// None stands for a variable.
    segments: Vec<Option<String>>,
    /// What stands after the colon, such as start in "vms/{name}:start".
    action: Option<String>,
}

/// The methods of the descriptor set.
pub struct Catalogue {
    methods: Vec<Method>,
    by_path: HashMap<String, usize>,
    /// Of the public contract, where each request is of one method only.
    by_input: HashMap<String, usize>,
}

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    Catalogue::read(tamdao_proto::DESCRIPTORS).expect("the descriptors were made by our build")
});

/// The catalogue of this build.
pub fn catalogue() -> &'static Catalogue {
    &CATALOGUE
}

impl Catalogue {
    fn read(descriptors: &[u8]) -> Result<Self, prost::DecodeError> {
        let mut methods = Vec::new();
        let files = wire::Files::decode(descriptors)?.file;
        let mut messages = HashMap::new();
        for file in &files {
            messages
                .extend(file.messages.iter().map(|m| (format!(".{}.{}", file.package, m.name), m.clone())));
        }
        for file in files {
            for service in file.service {
                let service_name = format!("{}.{}", file.package, service.name);
                methods.extend(
                    service.method.into_iter().map(|method| read_method(&service_name, method, &messages)),
                );
            }
        }
        let by_path = methods.iter().enumerate().map(|(at, method)| (method.path.clone(), at)).collect();
        let public =
            methods.iter().enumerate().filter(|(_, method)| method.service.starts_with("tamdao.v1."));
        let by_input = public.map(|(at, method)| (method.input.clone(), at)).collect();
        Ok(Self { methods, by_path, by_input })
    }

    /// The method that a request means, on either face; None for everything that is no method of ours.
    pub fn resolve(&self, verb: &Verb, path: &str) -> Option<&Method> {
        if let Some(at) = self.by_path.get(path) {
            return Some(&self.methods[*at]);
        }
        // As the REST face does it: the last colon begins an action, if no slash follows.
        let (body, action) = match path.rsplit_once(':') {
            Some((body, action)) if !action.contains('/') => (body, Some(action)),
            _ => (path, None),
        };
        let segments: Vec<&str> = body.strip_prefix('/')?.split('/').collect();
        self.methods.iter().find(|method| {
            method.routes.iter().any(|route| {
                route.verb == *verb && route.action.as_deref() == action && route.matches(&segments)
            })
        })
    }

    /// The public method that takes requests of this type, "CreateVmRequest".
    pub fn taking(&self, input: &str) -> Option<&Method> {
        self.by_input.get(input).map(|at| &self.methods[*at])
    }

    pub fn iter(&self) -> impl Iterator<Item = &Method> {
        self.methods.iter()
    }
}

impl Method {
    /// The text at one of the known paths of a request of this method, in its binary form; empty where there is none.
    pub fn text_in(&self, message: &[u8], path: &str) -> String {
        let tags = self.texts.iter().find(|(known, _)| *known == path).map(|(_, tags)| tags.as_slice());
        let found = tags.and_then(|tags| tags.iter().try_fold(message, |within, tag| part(within, *tag)));
        found.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok()).unwrap_or_default()
    }
}

/// The bytes of a field, if a message has it.
fn part(mut message: &[u8], tag: u32) -> Option<&[u8]> {
    let mut found = None;
    while !message.is_empty() {
        let (at, kind) = decode_key(&mut message).ok()?;
        if kind == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
            let (bytes, rest) = message.split_at_checked(length)?;
            message = rest;
            // The last one counts, as for every reader of protobuf.
            found = if at == tag { Some(bytes) } else { found };
        } else {
            skip_field(kind, at, &mut message, DecodeContext::default()).ok()?;
        }
    }
    found
}

impl Route {
    fn new(verb: Verb, template: &str) -> Self {
        // Colons stand after the last brace only; our templates have no patterns inside braces.
        let (body, action) = match template.rsplit_once(':') {
            Some((body, action)) => (body, Some(action.to_owned())),
            None => (template, None),
        };
        let segment = |text: &str| (!text.starts_with('{')).then(|| text.to_owned());
        Self { verb, segments: body.trim_start_matches('/').split('/').map(segment).collect(), action }
    }

    fn matches(&self, segments: &[&str]) -> bool {
        self.segments.len() == segments.len()
            && self.segments.iter().zip(segments).all(|(wanted, given)| match wanted {
                Some(wanted) => wanted == given,
                None => !given.is_empty(),
            })
    }
}

/// The tags along a path of fields, if it ends in a text.
fn tags(messages: &HashMap<String, wire::Message>, input: &str, path: &str) -> Option<Vec<u32>> {
    let (mut within, mut tags, mut text) = (input.to_owned(), Vec::new(), false);
    for name in path.split('.') {
        let field = messages.get(&within)?.field.iter().find(|field| field.name == name)?;
        tags.push(u32::try_from(field.number).ok()?);
        text = field.kind == STRING;
        within.clone_from(&field.type_name);
    }
    text.then_some(tags)
}

/// `google.protobuf.FieldDescriptorProto.Type.TYPE_STRING`.
const STRING: i32 = 9;

fn read_method(service: &str, method: wire::Method, messages: &HashMap<String, wire::Message>) -> Method {
    let mut texts: Vec<_> =
        TEXTS.iter().filter_map(|path| Some((*path, tags(messages, &method.input_type, path)?))).collect();
    let fields = messages.get(&method.input_type).map(|input| input.field.as_slice()).unwrap_or_default();
    let resource = fields
        .iter()
        .find_map(|field| tags(messages, &method.input_type, &format!("{}.{RESOURCE_NAME}", field.name)));
    texts.extend(resource.map(|tags| (RESOURCE_NAME, tags)));
    let input = method.input_type.rsplit('.').next().unwrap_or_default().to_owned();
    let mut routes = Vec::new();
    let rules = method.options.and_then(|options| options.http).into_iter();
    for rule in rules.flat_map(|rule| {
        let more = rule.additional_bindings.clone();
        std::iter::once(rule).chain(more)
    }) {
        let verbs = [
            (Verb::GET, rule.get),
            (Verb::PUT, rule.put),
            (Verb::POST, rule.post),
            (Verb::DELETE, rule.delete),
            (Verb::PATCH, rule.patch),
        ];
        routes.extend(
            verbs
                .into_iter()
                .filter(|(_, t)| !t.is_empty())
                .map(|(verb, template)| Route::new(verb, &template)),
        );
    }
    let got = routes.first().is_some_and(|route: &Route| route.verb == Verb::GET);
    Method {
        path: format!("/{service}/{}", method.name),
        service: service.to_owned(),
        changes: !got,
        reads: got && !ANSWERED_BY_THE_LEADER.contains(&service),
        streams: method.client_streaming || method.server_streaming,
        request_streams: method.client_streaming,
        input,
        texts,
        routes,
    }
}

/// The few fields of descriptor.proto and google/api/http.proto that we read. `prost_types` would drop the options.
mod wire {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Files {
        #[prost(message, repeated, tag = "1")]
        pub file: Vec<File>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct File {
        #[prost(string, tag = "2")]
        pub package: String,
        #[prost(message, repeated, tag = "4")]
        pub messages: Vec<Message>,
        #[prost(message, repeated, tag = "6")]
        pub service: Vec<Service>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Message {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, repeated, tag = "2")]
        pub field: Vec<Field>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Field {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(int32, tag = "3")]
        pub number: i32,
        #[prost(int32, tag = "5")]
        pub kind: i32,
        #[prost(string, tag = "6")]
        pub type_name: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Service {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, repeated, tag = "2")]
        pub method: Vec<Method>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Method {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub input_type: String,
        #[prost(message, optional, tag = "4")]
        pub options: Option<Options>,
        #[prost(bool, tag = "5")]
        pub client_streaming: bool,
        #[prost(bool, tag = "6")]
        pub server_streaming: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Options {
        #[prost(message, optional, tag = "72295728")]
        pub http: Option<Rule>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Rule {
        #[prost(string, tag = "2")]
        pub get: String,
        #[prost(string, tag = "3")]
        pub put: String,
        #[prost(string, tag = "4")]
        pub post: String,
        #[prost(string, tag = "5")]
        pub delete: String,
        #[prost(string, tag = "6")]
        pub patch: String,
        #[prost(message, repeated, tag = "11")]
        pub additional_bindings: Vec<Rule>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(verb: Verb, path: &str) -> Option<&'static str> {
        catalogue().resolve(&verb, path).map(|method| method.path.as_str())
    }

    #[test]
    fn both_faces_mean_the_same_method() {
        let create = Some("/tamdao.v1.VmService/CreateVm");
        assert_eq!(path(Verb::POST, "/tamdao.v1.VmService/CreateVm"), create);
        assert_eq!(path(Verb::POST, "/v1/agencies/a/vms"), create);
        assert_eq!(path(Verb::GET, "/v1/agencies/a/vms/web"), Some("/tamdao.v1.VmService/GetVm"));
        assert_eq!(path(Verb::POST, "/v1/agencies/a/vms/web:start"), Some("/tamdao.v1.VmService/StartVm"));
        assert_eq!(path(Verb::GET, "/v1/agencies/a/vms:watch"), Some("/tamdao.v1.VmService/WatchVms"));
        assert_eq!(path(Verb::GET, "/v1/images/i"), path(Verb::GET, "/v1/agencies/a/images/i"));
        for (verb, wrong) in [
            (Verb::POST, "/v1/agencies/a/vms/web"),
            (Verb::GET, "/v1/agencies//vms"),
            (Verb::GET, "/v1/nothing"),
            (Verb::GET, ""),
            (Verb::GET, "/v1/agencies/a/vms/web:fly"),
        ] {
            assert_eq!(path(verb, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_got_reads_and_all_else_changes() {
        for method in catalogue().iter().filter(|method| method.service.starts_with("tamdao.v1.")) {
            let name = method.path.rsplit('/').next().unwrap();
            let reading = ["Get", "List", "Watch", "Explain", "Dump", "Replay", "Verify"]
                .iter()
                .any(|verb| name.starts_with(verb));
            assert_eq!(method.changes, !reading, "{name}");
            let here = !ANSWERED_BY_THE_LEADER.contains(&method.service.as_str());
            assert_eq!(method.reads, reading && here, "{name}");
        }
        assert!(catalogue().iter().filter(|m| m.service.ends_with("TransferService")).all(|m| !m.reads));
        assert!(
            catalogue()
                .resolve(&Verb::POST, "/tamdao.agent.v1.AgentService/Session")
                .unwrap()
                .request_streams
        );
    }
}
