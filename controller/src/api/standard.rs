//! The standard methods, once for all kinds: get, list, create, update, delete and watch differ between resources
//! only in what their hooks say. The macro at the end writes the glue between generated names and these methods.

use tamdao_model::AgencyId;
use tamdao_model::cluster::Request as Answered;
use tamdao_model::convert::{Public, Shown};
use tamdao_model::event::Severity;
use tamdao_model::selector::Selector;
use tamdao_store::kv::Revision;
use tamdao_store::typed::Draft;
use tamdao_store::view::{Delta, Held, Row, View};

use super::page::{self, Token};
use super::{Api, Asked, check_revision, find, new_in, scope_of};
use crate::access::{self, Asking};
use crate::admission::Moment;
use crate::decide::{self, quota};
use crate::refusal::Refusal;
use crate::shared::Shared;

/// What a kind of resource adds to the standard methods.
pub(crate) trait Standard: Held + Shown {
    /// Fills what lies in other records.
    fn complete(_proto: &mut Self::Proto, _row: &Self, _view: &View, _shared: &Shared) {}

    /// The resources of this kind that show something of a record of another kind that has changed: whoever watches
    /// them must hear of it.
    fn shows(_delta: &Delta, _newest: &View) -> Vec<Row<Self>> {
        Vec::new()
    }

    /// The agency whose it is and those above that, for who may see it; empty for what no agency owns.
    fn owners(&self, view: &View) -> Vec<AgencyId> {
        self.scope().agency().map(|agency| access::owners(view, agency)).unwrap_or_default()
    }

    /// The phase as the contract numbers it, for filters.
    fn phase(&self) -> i32 {
        self.phase_number()
    }
}

/// What a kind that requests write adds.
pub(crate) trait Writable: Standard + Public {
    /// Checks a new resource against the others.
    fn check_new(&self, _view: &View) -> Result<(), Refusal> {
        Ok(())
    }

    /// Checks a changed resource against the others.
    fn check_changed(&self, _before: &Self, _view: &View) -> Result<(), Refusal> {
        Ok(())
    }

    /// Refuses while others need it.
    fn check_unused(&self, _view: &View) -> Result<(), Refusal> {
        Ok(())
    }

    /// Removes it, or begins to. Returns its last state.
    fn drop_from(&self, draft: &mut Draft, moment: &mut Moment, caller: &str) -> Result<Self, Refusal> {
        self.check_unused(draft.view())?;
        decide::event(draft, moment, self, Severity::Info, "Deleted", "deleted", caller);
        draft.remove::<Self>(self.meta().id);
        Ok(self.clone())
    }

    /// What else changes with a new one, such as usage.
    fn added(&self, _draft: &mut Draft) -> Result<(), Refusal> {
        Ok(())
    }

    /// What else changes with a changed one.
    fn changed(&self, _before: &Self, _draft: &mut Draft) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A page of a list.
pub(crate) struct Page<P> {
    pub items: Vec<P>,
    pub next_page_token: String,
    pub cursor: String,
}

/// What a list asks for.
pub(crate) struct Wanted<'a> {
    pub agency: &'a str,
    pub page_size: u32,
    pub page_token: &'a str,
    pub labels: &'a str,
    pub phase: i32,
}

impl Api {
    pub(super) async fn get<T: Standard>(
        &self,
        asking: &Asking,
        agency: &str,
        name: &str,
    ) -> Result<T::Proto, Refusal> {
        let (view, _) = self.admitted(asking).await?;
        let row = find::<T>(&view, scope_of(&view, agency)?, name)?;
        Ok(self.show(row, &view))
    }

    pub(super) fn show<T: Standard>(&self, row: &Row<T>, view: &View) -> T::Proto {
        let mut proto = row.value.show(row.revision.0, view);
        T::complete(&mut proto, row, view, &self.shared);
        proto
    }

    pub(super) async fn list<T: Standard>(
        &self,
        asking: &Asking,
        wanted: Wanted<'_>,
    ) -> Result<Page<T::Proto>, Refusal> {
        let size = page::page_size(wanted.page_size)?;
        let selector = Selector::parse("labels", wanted.labels)?;
        let (view, caller) = self.admitted(asking).await?;
        let cluster = self.cluster_id();
        let token = Token::decode(cluster, wanted.page_token)?;
        let scope = match wanted.agency {
            "" => None,
            agency => Some(scope_of(&view, agency)?),
        };
        let after = token.as_ref().map(Token::name).transpose()?;
        let first = token.map_or(view.revision.0, |token| token.revision);
        let mut items = Vec::with_capacity(size);
        let (mut last, mut more) = (None, false);
        for (name, id) in T::rows(&view).names(scope, after) {
            let Some(row) = T::rows(&view).get(id) else { continue };
            let phase_fits = wanted.phase == 0 || row.phase() == wanted.phase;
            if !phase_fits || !selector.matches(&row.meta().labels) || !caller.sees(&row.owners(&view)) {
                continue;
            }
            if items.len() == size {
                more = true;
                break;
            }
            items.push(self.show(row, &view));
            last = Some(name.clone());
        }
        let next = last.filter(|_| more).map(|last| Token::after_name(cluster, first, &last).encode());
        Ok(Page {
            items,
            next_page_token: next.unwrap_or_default(),
            cursor: page::cursor(cluster, Revision(first)),
        })
    }

    /// Lets a decision about one resource be made and shows the resource. A repeated request_id gets the resource
    /// as it is now, and nothing is decided again.
    pub(super) async fn change<T, F>(&self, asked: Asked, mut decide: F) -> Result<T::Proto, Refusal>
    where
        T: Standard,
        F: FnMut(&mut Draft, &mut Moment) -> Result<T, Refusal> + Send + 'static,
    {
        let validate_only = asked.validate_only;
        let once = move |draft: &mut Draft, moment: &mut Moment| {
            if let Some(row) = answered_before::<T>(draft.view(), &asked)? {
                return Ok((row, false));
            }
            asked.asking.judge(draft.view(), moment.now)?;
            let resource = decide(draft, moment)?;
            if let Some(request_id) = asked.request_id {
                draft.put(Answered {
                    caller: asked.caller.clone(),
                    request_id,
                    time: moment.now,
                    kind: T::RESOURCE,
                    subject: resource.meta().id,
                    digest: asked.digest.clone(),
                });
            }
            Ok((resource, true))
        };
        if validate_only {
            let ((resource, _), mut view) = self.shared.writer.preview(once)?;
            // It is told with the revision that it has, and not with one that it will never get.
            let stands = self.shared.cache.view().get::<T>(resource.meta().id).map(|row| row.revision);
            T::rows_mut(&mut view).stamp(resource.meta().id, stands.unwrap_or(Revision::ZERO));
            return Ok(self.show_value(resource, Revision::ZERO, &view));
        }
        let ((resource, _), revision) = self.shared.writer.submit(once).await?;
        let view = self.shared.cache.at_least(revision).await?;
        Ok(self.show_value(resource, revision, &view))
    }

    /// Shows a resource from the view if it is still there, else its last state.
    fn show_value<T: Standard>(&self, resource: T, revision: Revision, view: &View) -> T::Proto {
        match T::rows(view).get(resource.meta().id) {
            Some(row) => self.show(row, view),
            None => {
                let mut proto = resource.show(revision.0, view);
                T::complete(&mut proto, &resource, view, &self.shared);
                proto
            }
        }
    }

    pub(super) async fn create<T: Writable>(
        &self,
        asked: Asked,
        agency: String,
        proto: T::Proto,
    ) -> Result<T::Proto, Refusal> {
        self.change(asked.clone(), move |draft, moment| {
            let scope = scope_of(draft.view(), &agency)?;
            let resource = T::create(proto.clone(), new_in(scope, moment), draft.view())?;
            insert(draft, moment, resource, &asked.caller)
        })
        .await
    }

    pub(super) async fn update<T: Writable>(
        &self,
        asked: Asked,
        agency: String,
        name: String,
        based_on: u64,
        proto: T::Proto,
        mask: Option<pbjson_types::FieldMask>,
    ) -> Result<T::Proto, Refusal> {
        self.change(asked.clone(), move |draft, moment| {
            let scope = scope_of(draft.view(), &agency)?;
            let row = find::<T>(draft.view(), scope, &name)?.clone();
            check_revision(&row, based_on)?;
            let new = row.value.update(proto.clone(), mask.as_ref(), draft.view())?;
            replace::<T>(draft, moment, &row.value, new, &asked.caller)
        })
        .await
    }

    pub(super) async fn delete<T: Writable>(
        &self,
        asked: Asked,
        agency: String,
        name: String,
        based_on: u64,
    ) -> Result<T::Proto, Refusal> {
        self.change(asked.clone(), move |draft, moment| {
            let scope = scope_of(draft.view(), &agency)?;
            let row = find::<T>(draft.view(), scope, &name)?.clone();
            check_revision(&row, based_on)?;
            row.value.drop_from(draft, moment, &asked.caller)
        })
        .await
    }
}

/// Drafts a new resource under a name that is free.
pub(super) fn insert<T: Writable>(
    draft: &mut Draft,
    moment: &mut Moment,
    resource: T,
    caller: &str,
) -> Result<T, Refusal> {
    name_is_free(draft.view(), &resource)?;
    resource.check_new(draft.view())?;
    decide::event(draft, moment, &resource, Severity::Info, "Created", "created", caller);
    if let Some(agency) = resource.scope().agency() {
        quota::check_open(draft.view(), agency)?;
    }
    draft.create(resource.clone());
    resource.added(draft)?;
    Ok(resource)
}

/// Refuses a name that is taken in its scope.
pub(super) fn name_is_free<T: Held + tamdao_model::Resource>(
    view: &View,
    resource: &T,
) -> Result<(), Refusal> {
    match T::rows(view).id_of(resource.scope(), &resource.meta().name) {
        Some(_) => Err(Refusal::exists(T::RESOURCE, resource.meta().name.as_str())),
        None => Ok(()),
    }
}

/// Drafts a changed resource; one that is as it was changes nothing.
pub(super) fn replace<T: Writable>(
    draft: &mut Draft,
    moment: &mut Moment,
    before: &T,
    new: T,
    caller: &str,
) -> Result<T, Refusal> {
    if new == *before {
        return Ok(new);
    }
    new.check_changed(before, draft.view())?;
    decide::event(draft, moment, &new, Severity::Info, "Updated", "updated", caller);
    draft.put(new.clone());
    new.changed(before, draft)?;
    Ok(new)
}

/// The resource of a request that was answered before, if this is its repetition.
fn answered_before<T: Standard>(view: &View, asked: &Asked) -> Result<Option<T>, Refusal> {
    let Some(request_id) = asked.request_id else { return Ok(None) };
    let Some(seen) = view.requests.get(format!("{}/{request_id}", asked.caller)) else { return Ok(None) };
    if seen.digest != asked.digest {
        return Err(Refusal::field("request_id", "was used for another request")
            .hint("make a fresh UUID for each request"));
    }
    let row = T::rows(view).get(seen.subject);
    row.map(|row| Some((*row.value).clone())).ok_or_else(|| {
        Refusal::precondition(
            "AnsweredAndGone",
            "this request was carried out before, and its resource is gone since",
        )
    })
}

/// The revision that an update or delete was based on, out of its resource.
pub(super) fn based_on(metadata: Option<&tamdao_proto::v1::Metadata>) -> u64 {
    metadata.map_or(0, |metadata| metadata.revision)
}

/// Writes a service of standard methods, with `extra` ones beside them.
///
/// `agency` says how requests name a scope: `cluster` (they do not) or `agency` (by a field of that name).
macro_rules! service {
    (
        $module:ident::$Service:ident, $T:ty, $field:ident, $plural:ident, $scope:tt, $phase:tt,
        get $get:ident($Get:ident) list $list:ident($List:ident -> $Listed:ident)
        watch $watch:ident($Watch:ident -> $Watched:ident as $Stream:ident)
        $(create $create:ident($Create:ident))?
        $(update $update:ident($Update:ident))?
        $(delete $delete:ident($Delete:ident))?
        extra { $($extra:tt)* }
    ) => {
        #[tonic::async_trait]
        impl tamdao_proto::v1::$module::$Service for $crate::api::Api {
            async fn $get(
                &self,
                request: tonic::Request<tamdao_proto::v1::$Get>,
            ) -> Result<tonic::Response<<$T as tamdao_model::convert::Shown>::Proto>, tonic::Status> {
                let asking = $crate::access::Asking::of(&request);
                let request = request.into_inner();
                let agency = $crate::api::standard::service!(@agency $scope request);
                Ok(tonic::Response::new(self.get::<$T>(&asking, agency, &request.name).await?))
            }

            async fn $list(
                &self,
                request: tonic::Request<tamdao_proto::v1::$List>,
            ) -> Result<tonic::Response<tamdao_proto::v1::$Listed>, tonic::Status> {
                let asking = $crate::access::Asking::of(&request);
                let request = request.into_inner();
                let wanted = $crate::api::standard::Wanted {
                    agency: $crate::api::standard::service!(@agency $scope request),
                    page_size: request.page_size,
                    page_token: &request.page_token,
                    labels: &request.labels,
                    phase: $crate::api::standard::service!(@phase $phase request),
                };
                let page = self.list::<$T>(&asking, wanted).await?;
                Ok(tonic::Response::new(tamdao_proto::v1::$Listed {
                    $plural: page.items,
                    next_page_token: page.next_page_token,
                    cursor: page.cursor,
                }))
            }

            type $Stream = $crate::api::Events<tamdao_proto::v1::$Watched>;

            async fn $watch(
                &self,
                request: tonic::Request<tamdao_proto::v1::$Watch>,
            ) -> Result<tonic::Response<Self::$Stream>, tonic::Status> {
                let asking = $crate::access::Asking::of(&request);
                let request = request.into_inner();
                let agency = $crate::api::standard::service!(@agency $scope request);
                let stream = self
                    .watch::<$T, _>(asking, agency, &request.name, &request.labels, &request.cursor, |event, resource, cursor| {
                        tamdao_proto::v1::$Watched { event: event as i32, $field: resource, cursor }
                    })
                    .await?;
                Ok(tonic::Response::new(stream))
            }

            $(async fn $create(
                &self,
                request: tonic::Request<tamdao_proto::v1::$Create>,
            ) -> Result<tonic::Response<<$T as tamdao_model::convert::Shown>::Proto>, tonic::Status> {
                let body = request.get_ref();
                let asked = $crate::api::Asked::new(&request, &body.request_id, body.validate_only)?;
                let request = request.into_inner();
                let agency = $crate::api::standard::service!(@agency $scope request).to_owned();
                let proto = request.$field.unwrap_or_default();
                Ok(tonic::Response::new(self.create::<$T>(asked, agency, proto).await?))
            })?

            $(async fn $update(
                &self,
                request: tonic::Request<tamdao_proto::v1::$Update>,
            ) -> Result<tonic::Response<<$T as tamdao_model::convert::Shown>::Proto>, tonic::Status> {
                let body = request.get_ref();
                let asked = $crate::api::Asked::new(&request, &body.request_id, body.validate_only)?;
                let request = request.into_inner();
                let agency = $crate::api::standard::service!(@agency $scope request).to_owned();
                let proto = request.$field.unwrap_or_default();
                let based_on = $crate::api::standard::based_on(proto.metadata.as_ref());
                let changed = self.update::<$T>(asked, agency, request.name, based_on, proto, request.update_mask);
                Ok(tonic::Response::new(changed.await?))
            })?

            $(async fn $delete(
                &self,
                request: tonic::Request<tamdao_proto::v1::$Delete>,
            ) -> Result<tonic::Response<<$T as tamdao_model::convert::Shown>::Proto>, tonic::Status> {
                let body = request.get_ref();
                let asked = $crate::api::Asked::new(&request, &body.request_id, body.validate_only)?;
                let request = request.into_inner();
                let agency = $crate::api::standard::service!(@agency $scope request).to_owned();
                let dropped = self.delete::<$T>(asked, agency, request.name, request.revision);
                Ok(tonic::Response::new(dropped.await?))
            })?

            $($extra)*
        }
    };
    (@agency cluster $request:ident) => { "" };
    (@agency agency $request:ident) => { &*$request.agency };
    (@phase none $request:ident) => { 0 };
    (@phase phase $request:ident) => { $request.phase };
}
pub(super) use service;
