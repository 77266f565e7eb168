//! Images in the contract. What the file turns out to be is status, written by the importer.

use pbjson_types::FieldMask;
use tamdao_proto::v1;

use super::held::show as show_id;
use super::update::{self, Update};
use super::{Checks, Invalid, New, Public, Shown, Twin, metadata, syntax};
use crate::image::{Image, ImageKind, ImageSpec, ImageStatus};
use crate::lookup::Lookup;
use crate::{Kind, limits};

impl Shown for Image {
    type Proto = v1::Image;
    const MESSAGE: &'static str = "tamdao.v1.Image";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::Image {
        let status = &self.status;
        let controllers = status.controllers.iter().map(|id| show_id(lookup, Kind::Controller, *id));
        v1::Image {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(v1::ImageSpec {
                kind: self.spec.kind.number(),
                url: self.spec.url.clone(),
                sha256: self.spec.sha256.clone(),
                min_memory_mib: self.spec.min_memory_mib,
            }),
            status: Some(v1::ImageStatus {
                phase: self.phase_number(),
                conditions: metadata::conditions(&status.conditions),
                observed_generation: self.meta.generation,
                format: status.format.clone(),
                sha256: status.sha256.clone(),
                size_bytes: status.size_bytes,
                virtual_size_mib: status.virtual_size_mib,
                controllers: controllers.collect(),
            }),
        }
    }

    fn phase_number(&self) -> i32 {
        self.status.phase.number()
    }
}

impl Public for Image {
    fn create(proto: v1::Image, new: New, lookup: &dyn Lookup) -> Result<Self, Invalid> {
        let mut checks = Checks::new(Kind::Image, lookup);
        let meta = metadata::read(&mut checks, proto.metadata, &new);
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        checks.finish(Self { meta, agency: new.scope.agency(), spec, status: ImageStatus::default() })
    }

    fn update(
        &self,
        proto: v1::Image,
        mask: Option<&FieldMask>,
        lookup: &dyn Lookup,
    ) -> Result<Self, Invalid> {
        let fixed = ["spec.kind", "spec.url", "spec.sha256"];
        let Update { proto, mut meta, mut checks, .. } = update::begin(self, proto, mask, &fixed, lookup)?;
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        let another = "make another image with it";
        checks.fixed("spec.kind", &self.spec.kind, &spec.kind, another);
        checks.fixed("spec.url", &self.spec.url, &spec.url, another);
        checks.fixed("spec.sha256", &self.spec.sha256, &spec.sha256, another);
        update::raise(&mut meta, spec != self.spec);
        checks.finish(Self { meta, spec, ..self.clone() })
    }
}

fn read(checks: &mut Checks<'_>, spec: v1::ImageSpec) -> ImageSpec {
    let kind = checks.choice("spec.kind", spec.kind, Some(ImageKind::Disk));
    if !spec.url.is_empty() {
        checks.ok("spec.url", syntax::url(&spec.url));
    }
    let sha256 = match spec.sha256.as_str() {
        "" => String::new(),
        text => checks.ok("spec.sha256", syntax::sha256(text)).unwrap_or_default(),
    };
    if spec.min_memory_mib > 0 {
        checks.number("spec.min_memory_mib", spec.min_memory_mib, limits::MEMORY_MIB, "or 0 for any");
    }
    ImageSpec { kind, url: spec.url, sha256, min_memory_mib: spec.min_memory_mib }
}
