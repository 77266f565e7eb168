//! The whole way from bytes to steps, with the files of a kept corpus as they are and broken in all sorts of ways, against
//! an empty cloud and against one that has what the corpus makes: nothing panics, nothing takes more memory than there is
//! a limit for, the normal form is its own, and a plan's steps have an order. Time is bounded by the budget of evaluation,
//! and a test that hangs is ended by the runner. What was found once stays in the corpus (decision 0241).

use std::path::PathBuf;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

/// The most that a process may take here, bytes: far above what any case needs, far below what a loop takes.
const MEMORY: u64 = 4 << 30;
/// Pieces that mean something somewhere, beside what the corpus has.
const PIECES: &[&str] = &[
    "\0",
    "\u{feff}",
    "\r\n",
    "\t",
    "${",
    "%{",
    "}",
    "<<-EOT\n",
    "/*",
    "&a ",
    "*a",
    "!!binary ",
    "<<: ",
    "? ",
    "- ",
    ": ",
    "---\n",
    "[",
    "{",
    "\"",
    "'",
    "\\u0000",
    "é",
    "\u{1f409}",
    "18446744073709551616",
    "-1",
    "1e308",
    "0x7f",
    "for_each = toset([\"a\"])\n",
    "count = 20001\n",
    "module \"m\" {\n  source = \"./m\"\n}\n",
    "range(0, 1024)",
    "for x in y : x => x...",
    "[*]",
    "jsondecode(\"[[[[\")",
    "replace(\"a\", \"\", \"b\")",
    "format(\"%9999999d\", 1)",
];

/// One change of a text; places are parts of a thousand, so that they mean the same while it shrinks.
#[derive(Debug, Clone)]
enum Breakage {
    Insert(u16, &'static str),
    Remove(u16, u16),
    Repeat(u16, u16, u8),
    /// A piece of another file.
    Graft(u16, usize, u16, u16),
    Swap(u16, u16, u16),
}

fn breakage() -> impl Strategy<Value = Breakage> {
    let place = || 0u16..1_000;
    prop_oneof![
        (place(), prop::sample::select(PIECES)).prop_map(|(at, piece)| Breakage::Insert(at, piece)),
        (place(), 0u16..40).prop_map(|(at, length)| Breakage::Remove(at, length)),
        (place(), 1u16..100, any::<u8>()).prop_map(|(at, length, times)| Breakage::Repeat(at, length, times)),
        (place(), any::<usize>(), place(), 1u16..400)
            .prop_map(|(at, file, from, length)| Breakage::Graft(at, file, from, length)),
        (place(), place(), 1u16..60).prop_map(|(a, b, length)| Breakage::Swap(a, b, length)),
    ]
}

/// The files of the corpus, by name.
static CORPUS: LazyLock<Vec<File>> = LazyLock::new(|| {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut files: Vec<File> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_none_or(|ending| ending != "md"))
        .map(|path| File {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            text: String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned(),
        })
        .collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(files.len() >= 6, "the corpus is not there");
    files
});

/// For each file of the corpus a cloud that has what it makes, so that plans change and replace.
static CLOUDS: LazyLock<Vec<Live>> = LazyLock::new(|| {
    let clouds = CORPUS.iter().map(|file| {
        let mut live = Live::new();
        if let Ok(manifest) = read(&[(&file.name, &file.text)])
            && let Ok(plan) = planned(&manifest, &live, &Wish::default())
        {
            apply(&plan, &mut live);
        }
        live
    });
    clouds.collect()
});

/// The place at so many thousandths, where a character begins.
fn place(text: &str, thousandths: u16) -> usize {
    text.floor_char_boundary(text.len() * usize::from(thousandths) / 1_000)
}

fn piece(text: &str, at: u16, length: u16) -> &str {
    let from = place(text, at);
    &text[from..text.floor_char_boundary((from + usize::from(length)).min(text.len()))]
}

fn broken(text: &str, breakages: &[Breakage]) -> String {
    let mut text = text.to_owned();
    for one in breakages {
        match one {
            Breakage::Insert(at, piece) => text.insert_str(place(&text, *at), piece),
            Breakage::Remove(at, length) => {
                let from = place(&text, *at);
                let gone = piece(&text, *at, *length).len();
                text.replace_range(from..from + gone, "");
            }
            Breakage::Repeat(at, length, times) => {
                let more = piece(&text, *at, *length).repeat(usize::from(*times));
                text.insert_str(place(&text, *at), &more);
            }
            Breakage::Graft(at, file, from, length) => {
                let other = piece(&CORPUS[file % CORPUS.len()].text, *from, *length);
                text.insert_str(place(&text, *at), other);
            }
            Breakage::Swap(a, b, length) => {
                let (one, other) =
                    (piece(&text, *a, *length).to_owned(), piece(&text, *b, *length).to_owned());
                if !one.is_empty() && !other.is_empty() {
                    text = text.replacen(&one, &other, 1);
                }
            }
        }
    }
    text
}

fn is_values(name: &str) -> bool {
    name.ends_with(".tfvars")
}

/// All that is done with a file on its way, whatever it says.
fn whole_way(name: &str, text: &str, cloud: &Live) {
    let file = File { name: name.to_owned(), text: text.to_owned() };
    if is_values(name) {
        let _ = crate::values(&file);
        return;
    }
    if name.ends_with(".tf")
        && let Ok(once) = crate::format(&file)
    {
        let again = crate::format(&File { text: once.clone(), ..file }).expect("the normal form can be read");
        assert_eq!(again, once, "the normal form is not its own");
    }
    let Ok(manifest) = read(&[(name, text)]) else { return };
    for live in [&Live::new(), cloud] {
        let destroy = Wish { destroy: true, ..Wish::default() };
        for wish in [Wish::default(), destroy] {
            if let Ok(plan) = planned(&manifest, live, &wish) {
                let _ = crate::show(&plan);
                let _ = crate::steps(&plan);
            }
        }
    }
}

/// Whatever asks for more is refused it, and the process ends. A runner gives each test a process of its own.
fn bound_memory() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let most = Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
    setrlimit(Resource::As, most).unwrap();
}

#[test]
fn the_corpus_goes_the_whole_way() {
    bound_memory();
    for (file, cloud) in CORPUS.iter().zip(CLOUDS.iter()) {
        whole_way(&file.name, &file.text, cloud);
        assert!(file.name != "plain.tf" || !cloud.is_empty(), "it makes something, which is planned against");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_breakage_makes_it_panic_or_swell(
        file in any::<prop::sample::Index>(),
        breakages in prop::collection::vec(breakage(), 1..8),
    ) {
        bound_memory();
        let number = file.index(CORPUS.len());
        let (file, cloud) = (&CORPUS[number], &CLOUDS[number]);
        whole_way(&file.name, &broken(&file.text, &breakages), cloud);
    }

    #[test]
    fn no_breakage_in_the_wrong_form_does_either(
        file in any::<prop::sample::Index>(),
        ending in prop::sample::select(&["a.tf", "a.yaml", "a.json", "a.tfvars"][..]),
        breakages in prop::collection::vec(breakage(), 0..4),
    ) {
        bound_memory();
        let file = &CORPUS[file.index(CORPUS.len())];
        whole_way(ending, &broken(&file.text, &breakages), &Live::new());
    }
}
