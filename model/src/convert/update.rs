//! How every update works: what is shown, with the masked fields of the request put over it, is read again like
//! a new resource, and then compared. Fields that are fixed at creation are left as they are when a request that
//! gives the whole spec leaves them unset, so that a manifest need not repeat what it never said.

use pbjson_types::FieldMask;
use tamdao_proto::v1;

use super::{Checks, Invalid, Shown, Violation, metadata};
use crate::lookup::Lookup;
use crate::{Meta, Resource, mask};

const DISPLAY_NAME: &str = "metadata.display_name";
const LABELS: &str = "metadata.labels";
const SPEC: &str = "spec";

/// An update on its way.
pub(super) struct Update<'a, P> {
    /// The resource as it would be shown afterwards.
    pub proto: P,
    /// Its metadata, with the generation not yet raised.
    pub meta: Meta,
    pub checks: Checks<'a>,
    /// Fields that the mask names one by one.
    explicit: Vec<String>,
}

impl<P> Update<'_, P> {
    /// Whether the mask names this very field: an unset one then means to clear it.
    pub fn names(&self, path: &str) -> bool {
        self.explicit.iter().any(|p| p == path)
    }
}

/// What the merge needs to know of the parts that all messages have.
pub(super) trait Parts {
    fn metadata(&self) -> Option<&v1::Metadata>;
    fn has_spec(&self) -> bool;
}

macro_rules! parts {
    ($($message:ty),+) => {$(
        impl Parts for $message {
            fn metadata(&self) -> Option<&v1::Metadata> {
                self.metadata.as_ref()
            }
            fn has_spec(&self) -> bool {
                self.spec.is_some()
            }
        }
    )+};
}

parts!(
    v1::Agency,
    v1::Node,
    v1::Pool,
    v1::Volume,
    v1::Flavor,
    v1::Image,
    v1::Network,
    v1::PlacementGroup,
    v1::RoleBinding,
    v1::SchedulingPolicy,
    v1::Vm
);

/// Merges a request into what is; `fixed` are the paths of the spec that cannot change.
pub(super) fn begin<'a, R>(
    resource: &R,
    incoming: R::Proto,
    mask: Option<&FieldMask>,
    fixed: &[&str],
    lookup: &'a dyn Lookup,
) -> Result<Update<'a, R::Proto>, Invalid>
where
    R: Shown,
    R::Proto: Parts,
{
    let named = mask::read(R::MESSAGE, mask).map_err(|violations| Invalid { violations })?;
    let mut checks = Checks::new(R::RESOURCE, lookup);
    let mut paths: Vec<String> = named.iter().cloned().collect();
    if named.is_empty() {
        // A part that is left out of the message altogether is left as it is.
        if incoming.metadata().is_some() {
            paths.extend([DISPLAY_NAME.to_owned(), LABELS.to_owned()]);
        }
        if incoming.has_spec() {
            paths.push(SPEC.to_owned());
        }
        check_identity(&mut checks, resource, incoming.metadata());
    } else {
        let refused: Vec<_> = named.iter().filter_map(|path| refuse(path)).collect();
        if !refused.is_empty() {
            return Err(Invalid { violations: refused });
        }
    }
    let shown = resource.show(0, lookup);
    let mut proto = mask::merge(R::MESSAGE, &shown, &incoming, &paths);
    if paths.iter().any(|path| path == SPEC) {
        proto = mask::keep_unset(R::MESSAGE, &proto, &shown, &incoming, fixed);
    }
    let mut meta = resource.meta().clone();
    metadata::write(&mut checks, &mut meta, proto.metadata().cloned().unwrap_or_default());
    Ok(Update { proto, meta, checks, explicit: paths })
}

/// A request without a mask may repeat who the resource is, but not make it another.
fn check_identity<R: Resource>(checks: &mut Checks<'_>, resource: &R, given: Option<&v1::Metadata>) {
    let Some(given) = given else { return };
    let meta = resource.meta();
    let renamed = !given.name.is_empty() && given.name != meta.name.as_str();
    if renamed && given.name != meta.id.to_string() {
        checks.wrong("metadata.name", format!("cannot change; it is {:?}", meta.name.as_str()));
    }
    if !given.id.is_empty() && given.id != meta.id.to_string() {
        checks.wrong("metadata.id", format!("cannot change; it is {}", meta.id));
    }
    metadata::check_agency(checks, &given.agency, resource.scope());
}

fn refuse(path: &str) -> Option<Violation> {
    let top = path.split('.').next().unwrap_or_default();
    let message = match (path, top) {
        (DISPLAY_NAME | LABELS, _) | (_, SPEC) => return None,
        (_, "status") => format!("{path:?} is written by the cloud, not by requests"),
        _ => format!("{path:?} cannot change; of the metadata, {DISPLAY_NAME} and {LABELS} can"),
    };
    Some(Violation::new("update_mask", message))
}

/// Raises the generation if the spec has changed.
pub(super) fn raise(meta: &mut Meta, changed: bool) {
    meta.generation += u64::from(changed);
}
