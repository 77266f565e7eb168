//! The calls of libvirt that the `virt` crate does not wrap: the event loop, callbacks, the error handler and bulk
//! statistics. It is the only place with `unsafe`.
//!
//! Invariants: a callback never calls libvirt and never blocks, it hands a value to a closure of ours; what libvirt
//! allocates, libvirt frees. Deliberately absent: what the values mean, beyond making them ours.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Once};

use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;

use super::super::{Change, DomainEvent, Exit, PauseReason, vm_of_domain_name};

/// Takes what callbacks say. Called on the event loop's thread: it must not block.
pub type Sink = Arc<dyn Fn(DomainEvent) + Send + Sync>;

/// Is told once that a connection has gone. Called on the event loop's thread.
pub type Closed = Arc<dyn Fn() + Send + Sync>;

/// Starts the one event loop of the process; must come before the first connection. libvirt's own messages on
/// stderr become debug messages: each error is an answer to a call too.
pub fn start() -> Result<(), Error> {
    static ONCE: Once = Once::new();
    let mut outcome = Ok(());
    ONCE.call_once(|| {
        // SAFETY: the handler is a function that lives as long as the process and needs no data.
        unsafe { virt_sys::virSetErrorFunc(ptr::null_mut(), Some(on_error)) };
        outcome = virt::event::event_register_default_impl();
        if outcome.is_ok() {
            let spawned = std::thread::Builder::new().name("libvirt-events".to_owned()).spawn(|| {
                loop {
                    if let Err(error) = virt::event::event_run_default_impl() {
                        tracing::error!(error = error.message(), "libvirt's event loop failed");
                        // Without a pause a lasting failure would take a whole core.
                        std::thread::sleep(std::time::Duration::from_millis(100));
                    }
                }
            });
            if let Err(error) = spawned {
                tracing::error!(%error, "the thread of libvirt's event loop cannot be started");
            }
        }
    });
    outcome
}

/// What is registered at a connection; ends when dropped.
pub struct Subscriptions {
    connect: Connect,
    ids: Vec<c_int>,
    close: bool,
}

/// Registers all that we listen to.
pub fn subscribe(connect: &Connect, sink: &Sink, closed: &Closed) -> Result<Subscriptions, Error> {
    let mut subscriptions = Subscriptions { connect: connect.clone(), ids: Vec::new(), close: false };
    // SAFETY: libvirt calls back with the signature that belongs to the event id, whatever the type in the
    // signature of the registration says; that is its documented use.
    let lifecycle = unsafe { std::mem::transmute::<LifecycleCallback, GenericCallback>(on_lifecycle) };
    // SAFETY: as above.
    let io_error = unsafe { std::mem::transmute::<IoErrorCallback, GenericCallback>(on_io_error) };
    // SAFETY: as above.
    let agent = unsafe { std::mem::transmute::<LifecycleLikeCallback, GenericCallback>(on_agent) };
    for (id, callback) in [
        (virt_sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
        (virt_sys::VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, io_error),
        (virt_sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent),
    ] {
        let opaque = Box::into_raw(Box::new(Arc::clone(sink)));
        // SAFETY: the connection is alive; `opaque` is a box of a Sink that `free_sink` takes back when libvirt
        // is done with it. If the registration fails the box is leaked, because libvirt does not say whether it
        // has freed it.
        let registered = unsafe {
            virt_sys::virConnectDomainEventRegisterAny(
                connect.as_ptr(),
                ptr::null_mut(),
                id as c_int,
                Some(callback),
                opaque.cast(),
                Some(free_sink),
            )
        };
        if registered < 0 {
            return Err(Error::last_error());
        }
        subscriptions.ids.push(registered);
    }
    let opaque = Box::into_raw(Box::new(Arc::clone(closed)));
    // SAFETY: as for the events, with a box of a Closed.
    let registered = unsafe {
        virt_sys::virConnectRegisterCloseCallback(
            connect.as_ptr(),
            Some(on_close),
            opaque.cast(),
            Some(free_closed),
        )
    };
    if registered < 0 {
        return Err(Error::last_error());
    }
    subscriptions.close = true;
    Ok(subscriptions)
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        // Each registration holds the connection: without this a lost connection would stay in memory. Over a
        // lost connection the calls fail after having let go on this side, so their answers mean nothing.
        for id in self.ids.drain(..) {
            // SAFETY: the connection is alive as long as `self.connect`, and the id is one of its own.
            unsafe { virt_sys::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), id) };
        }
        if self.close {
            // SAFETY: as above, with the function that was registered.
            unsafe { virt_sys::virConnectUnregisterCloseCallback(self.connect.as_ptr(), Some(on_close)) };
        }
    }
}

type GenericCallback = unsafe extern "C" fn(virt_sys::virConnectPtr, virt_sys::virDomainPtr, *mut c_void);
type LifecycleCallback =
    unsafe extern "C" fn(virt_sys::virConnectPtr, virt_sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type LifecycleLikeCallback =
    unsafe extern "C" fn(virt_sys::virConnectPtr, virt_sys::virDomainPtr, c_int, c_int, *mut c_void);
type IoErrorCallback = unsafe extern "C" fn(
    virt_sys::virConnectPtr,
    virt_sys::virDomainPtr,
    *const c_char,
    *const c_char,
    c_int,
    *const c_char,
    *mut c_void,
);

unsafe extern "C" fn free_sink(opaque: *mut c_void) {
    // SAFETY: libvirt calls this once, with the pointer of the registration, after its last callback.
    drop(unsafe { Box::from_raw(opaque.cast::<Sink>()) });
}

unsafe extern "C" fn free_closed(opaque: *mut c_void) {
    // SAFETY: as in `free_sink`.
    drop(unsafe { Box::from_raw(opaque.cast::<Closed>()) });
}

unsafe extern "C" fn on_error(_data: *mut c_void, error: virt_sys::virErrorPtr) {
    if error.is_null() {
        return;
    }
    // SAFETY: libvirt passes an error that is valid during the call.
    let message = unsafe { text((*error).message) };
    tracing::debug!(error = message, "libvirt said");
}

unsafe extern "C" fn on_close(_connect: virt_sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: `opaque` is the box of the registration, which outlives its callbacks.
    let closed = unsafe { &*opaque.cast::<Closed>() };
    closed();
}

unsafe extern "C" fn on_lifecycle(
    _connect: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: both pointers are valid during the call, and `opaque` is a box of a Sink.
    let (vm, sink) = unsafe { (vm_of(domain), &*opaque.cast::<Sink>()) };
    if let (Some(vm), Some(change)) = (vm, change(event as u32, detail as u32)) {
        sink(DomainEvent::Lifecycle { vm, change });
    }
    0
}

unsafe extern "C" fn on_io_error(
    _connect: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    path: *const c_char,
    _alias: *const c_char,
    _action: c_int,
    reason: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: all pointers are valid during the call, and `opaque` is a box of a Sink.
    let (vm, sink, path, reason) =
        unsafe { (vm_of(domain), &*opaque.cast::<Sink>(), text(path), text(reason)) };
    if let Some(vm) = vm {
        sink(DomainEvent::IoError { vm, path, reason });
    }
}

unsafe extern "C" fn on_agent(
    _connect: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: both pointers are valid during the call, and `opaque` is a box of a Sink.
    let (vm, sink) = unsafe { (vm_of(domain), &*opaque.cast::<Sink>()) };
    if let Some(vm) = vm {
        let connected = state as u32 == virt_sys::VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED;
        sink(DomainEvent::AgentConnected { vm, connected });
    }
}

/// Reads a name that the domain's handle holds; it is no call to libvirtd.
unsafe fn vm_of(domain: virt_sys::virDomainPtr) -> Option<Uuid> {
    // SAFETY: the caller passes a valid handle, and the name lives as long as the handle.
    let name = unsafe { text(virt_sys::virDomainGetName(domain)) };
    vm_of_domain_name(&name)
}

unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the caller passes a C string.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

fn change(event: u32, detail: u32) -> Option<Change> {
    Some(match event {
        virt_sys::VIR_DOMAIN_EVENT_STARTED => Change::Started,
        virt_sys::VIR_DOMAIN_EVENT_SUSPENDED => Change::Paused(match detail {
            virt_sys::VIR_DOMAIN_EVENT_SUSPENDED_PAUSED => PauseReason::OnDemand,
            virt_sys::VIR_DOMAIN_EVENT_SUSPENDED_IOERROR => PauseReason::IoError,
            virt_sys::VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED
            | virt_sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY
            | virt_sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED => PauseReason::Migration,
            _ => PauseReason::Other,
        }),
        virt_sys::VIR_DOMAIN_EVENT_RESUMED => Change::Resumed,
        virt_sys::VIR_DOMAIN_EVENT_SHUTDOWN => Change::ShuttingDown,
        virt_sys::VIR_DOMAIN_EVENT_STOPPED => Change::Stopped(match detail {
            virt_sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => Exit::Shutdown,
            virt_sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => Exit::Destroyed,
            virt_sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED => Exit::Crashed,
            virt_sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED => Exit::Migrated,
            _ => Exit::Failed,
        }),
        virt_sys::VIR_DOMAIN_EVENT_CRASHED => Change::Crashed,
        _ => return None,
    })
}

/// The counters of the job that works on a domain, such as a migration; `None` while there is none.
pub fn job(domain: &Domain) -> Result<Option<BTreeMap<String, u64>>, Error> {
    let (mut kind, mut count): (c_int, c_int) = (0, 0);
    let mut params: virt_sys::virTypedParameterPtr = ptr::null_mut();
    // SAFETY: the domain is alive, and `params` takes an array that is freed below.
    let done =
        unsafe { virt_sys::virDomainGetJobStats(domain.as_ptr(), &mut kind, &mut params, &mut count, 0) };
    if done < 0 {
        return Err(Error::last_error());
    }
    let mut counters = BTreeMap::new();
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the array has `count` parameters, `field` is a C string, and `type_` says which member is set.
        unsafe {
            let param = &*params.add(index);
            if param.type_ as u32 == virt_sys::VIR_TYPED_PARAM_ULLONG {
                counters.insert(text(param.field.as_ptr()), param.value.ul);
            }
        }
    }
    // SAFETY: the array is the one that the call above gave us, and nothing of it is kept; none is no error.
    unsafe { virt_sys::virTypedParamsFree(params, count) };
    Ok((kind as u32 != virt_sys::VIR_DOMAIN_JOB_NONE).then_some(counters))
}

/// Gives up the job that works on a domain.
pub fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the domain is alive.
    if unsafe { virt_sys::virDomainAbortJob(domain.as_ptr()) } < 0 {
        return Err(Error::last_error());
    }
    Ok(())
}

/// The counters of one running domain, as names and numbers.
pub struct Record {
    pub domain: String,
    pub counters: Vec<(String, u64)>,
    /// The texts among them, such as the names of devices.
    pub names: Vec<(String, String)>,
}

/// CPU, memory, disks and interfaces of every running domain, foreign ones included, in one call.
pub fn stats(connect: &Connect) -> Result<Vec<Record>, Error> {
    let groups = virt_sys::VIR_DOMAIN_STATS_CPU_TOTAL
        | virt_sys::VIR_DOMAIN_STATS_BALLOON
        | virt_sys::VIR_DOMAIN_STATS_INTERFACE
        | virt_sys::VIR_DOMAIN_STATS_BLOCK;
    // A domain that is busy gives what is known without waiting for it.
    let flags = virt_sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
        | virt_sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;
    let mut list: *mut virt_sys::virDomainStatsRecordPtr = ptr::null_mut();
    // SAFETY: the connection is alive, and `list` takes an array that we free below.
    let count = unsafe { virt_sys::virConnectGetAllDomainStats(connect.as_ptr(), groups, &mut list, flags) };
    if count < 0 {
        return Err(Error::last_error());
    }
    // SAFETY: the list is the one that the call above gave us, with so many records.
    Ok(unsafe { take_records(list, count) })
}

/// Begins to measure how much memory a guest changes.
pub fn measure_dirtying(domain: &Domain, seconds: c_int) -> Result<(), Error> {
    let mode = virt_sys::VIR_DOMAIN_DIRTYRATE_MODE_PAGE_SAMPLING;
    // SAFETY: the domain is alive.
    if unsafe { virt_sys::virDomainStartDirtyRateCalc(domain.as_ptr(), seconds, mode) } < 0 {
        return Err(Error::last_error());
    }
    Ok(())
}

/// What has been measured, and the memory that the guest has in use.
pub fn dirtying(domain: &Domain) -> Result<Option<Record>, Error> {
    let groups = virt_sys::VIR_DOMAIN_STATS_DIRTYRATE | virt_sys::VIR_DOMAIN_STATS_BALLOON;
    // SAFETY: the domain is alive, and outlives the array.
    let mut domains = [unsafe { domain.as_ptr() }, ptr::null_mut()];
    let mut list: *mut virt_sys::virDomainStatsRecordPtr = ptr::null_mut();
    // SAFETY: `domains` ends with a null and its one domain is alive; `list` takes an array that we free below.
    let count = unsafe { virt_sys::virDomainListGetStats(domains.as_mut_ptr(), groups, &mut list, 0) };
    if count < 0 {
        return Err(Error::last_error());
    }
    // SAFETY: the list is the one that the call above gave us, with so many records.
    Ok(unsafe { take_records(list, count) }.pop())
}

/// Makes libvirt's records ours, and frees them.
///
/// # Safety
/// `list` is an array of `count` valid records that libvirt has given to its caller.
unsafe fn take_records(list: *mut virt_sys::virDomainStatsRecordPtr, count: c_int) -> Vec<Record> {
    let count = usize::try_from(count).unwrap_or(0);
    let mut records = Vec::with_capacity(count);
    for index in 0..count {
        // SAFETY: the caller says that the array has `count` valid records, each with `nparams` parameters and a domain.
        let (domain, params) = unsafe {
            let record = &**list.add(index);
            let params = match (record.params.is_null(), record.nparams) {
                (false, 1..) => std::slice::from_raw_parts(record.params, record.nparams as usize),
                _ => &[],
            };
            (text(virt_sys::virDomainGetName(record.dom)), params)
        };
        let mut record = Record { domain, counters: Vec::with_capacity(params.len()), names: Vec::new() };
        for param in params {
            // SAFETY: `field` is a C string, and `type_` says which member of the union is set.
            unsafe {
                let field = text(param.field.as_ptr());
                match param.type_ as u32 {
                    virt_sys::VIR_TYPED_PARAM_ULLONG => record.counters.push((field, param.value.ul)),
                    virt_sys::VIR_TYPED_PARAM_UINT => {
                        record.counters.push((field, u64::from(param.value.ui)))
                    }
                    // Where libvirt has a sign, less than nothing means that it is not known.
                    virt_sys::VIR_TYPED_PARAM_INT => {
                        record.counters.extend(u64::try_from(param.value.i).ok().map(|value| (field, value)))
                    }
                    virt_sys::VIR_TYPED_PARAM_LLONG => {
                        record.counters.extend(u64::try_from(param.value.l).ok().map(|value| (field, value)))
                    }
                    virt_sys::VIR_TYPED_PARAM_STRING => record.names.push((field, text(param.value.s))),
                    _ => {}
                }
            }
        }
        records.push(record);
    }
    // SAFETY: the list is the caller's, and nothing of it is kept.
    unsafe { virt_sys::virDomainStatsRecordListFree(list) };
    records
}
