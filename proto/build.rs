//! One descriptor set, four generators: messages and tonic services, proto3 JSON, REST routes, OpenAPI.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use rest_over_grpc::build::{DescriptorOptions, Generator, OpenApiInfo, ServiceDefinition};

/// The package of the public contract.
const PUBLIC: &str = ".tamdao.v1";
/// On each generated service: whoever wants messages only gets no tonic.
const SPEAKING: &str = r#"#[cfg(feature = "grpc")]"#;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let files = proto_files(Path::new("tamdao"))?;
    println!("cargo::rerun-if-changed=tamdao");

    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&files)?;
    let standard = compiler.encode_file_descriptor_set();
    let bytes = with_proto_names(&standard)?;
    let set = prost_types::FileDescriptorSet::decode(&*bytes)?;
    std::fs::write(out.join("descriptors.bin"), &bytes)?;

    tonic_prost_build::configure()
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_well_known_types(true)
        .bytes(".tamdao")
        // Maps in order, so that equal resources have equal JSON.
        .btree_map(".tamdao")
        .client_mod_attribute(".", SPEAKING)
        .server_mod_attribute(".", SPEAKING)
        .compile_fds(set.clone())?;
    std::fs::write(out.join("tamdao.v1.unary.rs"), unary(&set))?;
    pbjson_build::Builder::new()
        // With the standard names beside the protos' own: input may have either, output has the protos'.
        .register_descriptors(&standard)?
        .preserve_proto_field_names()
        .btree_map([".tamdao"])
        .build(&[".tamdao.v1", ".tamdao.agent.v1"])?;

    let options = DescriptorOptions::new().package(PUBLIC).extern_path(".google.protobuf", "::pbjson_types");
    let info = OpenApiInfo::new("Tam Đảo", "v1");
    let mut generator = Generator::builder().emit_openapi_spec(Some(info)).build();
    generator.add_all(ServiceDefinition::from_fds(&bytes, &options)?);
    generator.write(&out)?;
    Ok(())
}

/// Which method a request of the public contract is for, and its answer: `impl Unary for GetVmRequest`.
fn unary(set: &prost_types::FileDescriptorSet) -> String {
    let mut text = String::new();
    for file in set.file.iter().filter(|file| format!(".{}", file.package()) == PUBLIC) {
        for service in &file.service {
            for method in &service.method {
                if method.client_streaming() || method.server_streaming() {
                    continue;
                }
                let own = |name: &str| name.trim_start_matches(PUBLIC).trim_start_matches('.').to_owned();
                let (request, response) = (own(method.input_type()), own(method.output_type()));
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                text.push_str(&format!(
                    "impl crate::Unary for {request} {{ type Response = {response}; const PATH: &'static str = {path:?}; }}\n"
                ));
            }
        }
    }
    text
}

/// Every .proto below a folder, sorted, so that the descriptor set is the same everywhere.
fn proto_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(proto_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// One spelling on every face: JSON names become the proto names (docs/decisions/0003). The set is edited as a
/// dynamic message, because `prost_types` would drop the `google.api.http` options.
fn with_proto_names(set: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let pool = DescriptorPool::decode(set)?;
    let descriptor =
        pool.get_message_by_name("google.protobuf.FileDescriptorSet").ok_or("no descriptor.proto")?;
    let mut message = DynamicMessage::decode(descriptor, set)?;
    for file in list_mut(&mut message, "file") {
        if file
            .get_field_by_name("package")
            .is_some_and(|p| p.as_str().is_some_and(|p| p.starts_with("tamdao")))
        {
            for message in list_mut(file, "message_type") {
                use_proto_names(message);
            }
        }
    }
    Ok(message.encode_to_vec())
}

fn use_proto_names(message: &mut DynamicMessage) {
    for field in list_mut(message, "field") {
        let name = field.get_field_by_name("name").expect("every field has a name").into_owned();
        field.set_field_by_name("json_name", name);
    }
    for nested in list_mut(message, "nested_type") {
        use_proto_names(nested);
    }
}

fn list_mut<'a>(
    message: &'a mut DynamicMessage,
    field: &str,
) -> impl Iterator<Item = &'a mut DynamicMessage> {
    let list = message.get_field_by_name_mut(field).expect("a field of descriptor.proto");
    list.as_list_mut().expect("a list").iter_mut().map(|item| item.as_message_mut().expect("of messages"))
}
