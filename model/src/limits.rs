//! Every limit of the cloud in one place. What is not limited will one day be too large.

/// Labels of one resource.
pub const LABELS: usize = 32;
/// A label's key or value, bytes.
pub const LABEL_BYTES: usize = 63;
/// A display name, characters.
pub const DISPLAY_NAME_CHARS: usize = 200;
/// An agency's description, characters.
pub const DESCRIPTION_CHARS: usize = 1_000;
/// Agencies above each other.
pub const AGENCY_DEPTH: usize = 8;
/// Limits of one quota.
pub const QUOTA_MEASURES: usize = 64;
pub const VCPUS: std::ops::RangeInclusive<u32> = 1..=256;
/// A guest's memory, MiB.
pub const MEMORY_MIB: std::ops::RangeInclusive<u32> = 64..=4_194_304;
/// A volume's virtual size, MiB.
pub const VOLUME_MIB: std::ops::RangeInclusive<u32> = 1..=67_108_864;
pub const DISKS: usize = 16;
pub const INTERFACES: usize = 8;
pub const SSH_KEYS: usize = 32;
/// One public key, bytes.
pub const SSH_KEY_BYTES: usize = 8 * 1024;
pub const USER_DATA_BYTES: usize = 48 * 1024;
/// A kernel's command line, bytes.
pub const COMMAND_LINE_BYTES: usize = 2_048;
pub const MTU: std::ops::RangeInclusive<u32> = 576..=9_216;
pub const DNS_SERVERS: usize = 4;
/// Address ranges of one subnet.
pub const RANGES: usize = 16;
/// A network device's name, bytes (Linux's IFNAMSIZ less one).
pub const DEVICE_NAME_BYTES: usize = 15;
/// Failure-domain keys of one node, and values of one key.
pub const FAILURE_DOMAINS: usize = 16;
/// Placement groups of one VM.
pub const PLACEMENT_GROUPS: usize = 8;
/// Rules of one placement group.
pub const PLACEMENT_RULES: usize = 8;
/// Members that a rule allows in one node or failure domain.
pub const MEMBERS_AT_MOST: std::ops::RangeInclusive<u32> = 1..=1_000;
/// A VM's priority.
/// NUMA cells that one VM may ask for.
pub const NUMA_CELLS: std::ops::RangeInclusive<u32> = 0..=8;
pub const PRIORITY: std::ops::RangeInclusive<u32> = 0..=1_000;
/// The weight of one part of a node's score.
pub const SCORE_WEIGHT: std::ops::RangeInclusive<u32> = 0..=1_000;
/// Weights that one policy may name; more than any engine has parts.
pub const SCORE_WEIGHTS: usize = 32;
/// Failure-domain keys that are guarded.
pub const GUARDED_FAILURE_DOMAINS: usize = 8;
/// How long ACPI may take at most, seconds.
pub const STOP_DEADLINE_S: u32 = 3_600;
/// How long ACPI may take if nobody said, seconds.
pub const STOP_DEADLINE_DEFAULT_S: u32 = 120;
pub const PAGE_SIZE_DEFAULT: usize = 100;
pub const PAGE_SIZE_MAX: usize = 1_000;
/// A request body, bytes.
pub const BODY_BYTES: usize = 256 * 1024;
/// How long an address rests after its VM is gone, ms.
pub const ADDRESS_REST_MS: u64 = 10 * 60 * 1_000;
/// The store's state, keys and values. Nothing is refused beyond it: at half and at four fifths of it people are told.
pub const STATE_BYTES: u64 = 2 << 30;
/// How long events stay in the store, ms.
pub const EVENT_KEEP_MS: u64 = 24 * 60 * 60 * 1_000;
/// How long answered requests are remembered, ms.
pub const REQUEST_KEEP_MS: u64 = 60 * 60 * 1_000;
/// How long a move that is over stays in the store, ms.
pub const MOVE_KEEP_MS: u64 = 24 * 60 * 60 * 1_000;
/// Why a move was asked for, characters.
pub const MOVE_REASON_CHARS: usize = 200;
/// Virtual CPUs promised per real one when nobody said, percent.
pub const CPU_OVERCOMMIT_DEFAULT_PERCENT: u32 = 400;
/// Memory kept for a host when nobody said and 2 % are less, MiB.
pub const RESERVE_MEMORY_DEFAULT_MIB: u64 = 512;
/// VMs of one node; it bounds the assignment record, which must fit one transaction.
pub const VMS_PER_NODE: usize = 1_000;
/// The name of a user or of a group, characters.
pub const SUBJECT_CHARS: usize = 200;
/// Role bindings of a cloud: all of them are looked through for each request of a person.
pub const ROLE_BINDINGS: usize = 10_000;
/// What stacks have applied in a cloud, resources.
pub const APPLIED: usize = 100_000;
/// Resources noted by one request: with the leader's guard they fit one transaction.
pub const APPLIED_AT_ONCE: usize = 60;
/// What is noted of one resource, bytes.
pub const APPLIED_BYTES: usize = 64 * 1024;
/// Why an apply failed at a resource, characters.
pub const APPLIED_ERROR_CHARS: usize = 1_000;
/// Resources of a plan that is previewed.
pub const PLANNED: usize = 5_000;
/// A stored image, bytes.
pub const IMAGE_BYTES: u64 = 1 << 40;
/// BMCs of one node.
pub const BMCS: usize = 4;
/// The account of a BMC, characters.
pub const BMC_USERNAME_CHARS: usize = 64;
/// Its password, bytes.
pub const BMC_PASSWORD_BYTES: usize = 256;
/// The certificates of the CAs that are trusted for one BMC, bytes of PEM.
pub const BMC_CA_BYTES: usize = 32 * 1024;
/// An agency's contact, characters.
pub const CONTACT_CHARS: usize = 200;
/// An image's URL, bytes.
pub const URL_BYTES: usize = 2_048;
/// A pool's path, bytes.
pub const PATH_BYTES: usize = 1_024;
pub const VLAN_TAGS: std::ops::RangeInclusive<u32> = 1..=4_094;
/// Virtual CPUs promised per real one, percent.
pub const CPU_OVERCOMMIT_PERCENT: std::ops::RangeInclusive<u32> = 100..=3_200;
/// Memory promised per real memory, percent.
pub const MEMORY_OVERCOMMIT_PERCENT: std::ops::RangeInclusive<u32> = 100..=300;
/// Virtual disk size promised per real size, percent.
pub const POOL_OVERCOMMIT_PERCENT: std::ops::RangeInclusive<u32> = 100..=1_000;
/// Terms of one label selector.
pub const SELECTOR_TERMS: usize = 32;
/// Paths of one field mask.
pub const MASK_PATHS: usize = 64;
/// Violations listed for one request; nobody reads more.
pub const VIOLATIONS: usize = 50;
/// Restarts elsewhere that a VM's record remembers.
pub const EVACUATIONS_KEPT: usize = 8;
/// One text in an agent's report, characters; the rest is cut off.
pub const REPORT_TEXT_CHARS: usize = 2_000;
/// Addresses that one guest is believed to have.
pub const GUEST_ADDRESSES: usize = 64;
/// The largest amount of anything, MiB or vCPUs: 2^50, far above any machine. Readers of records and of text keep to it,
/// so that no sum over a node can overflow.
pub const AMOUNT_MAX: u64 = 1 << 50;
