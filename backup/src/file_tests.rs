//! A file is read as it was written, or not at all.

use proptest::prelude::*;

use super::*;

fn about(revision: u64) -> About {
    About {
        cluster: Uuid::from_u128(7),
        cluster_name: "north".into(),
        revision,
        level: 1,
        time_ms: 1_800_000_000_000,
        version: "0.1.0".into(),
    }
}

fn content(values: &[Vec<u8>]) -> Content {
    let entry = |(at, value): (usize, &Vec<u8>)| Entry {
        key: format!("/vm/{at:08}"),
        value: Bytes::copy_from_slice(value),
        create_revision: at as u64 + 1,
        mod_revision: at as u64 + 3,
    };
    Content { cluster_key: [9; 32], entries: values.iter().enumerate().map(entry).collect() }
}

fn sealed(values: &[Vec<u8>]) -> (Vec<u8>, Identities) {
    let (identities, recipient) = Identities::generate();
    let recipients = Recipients::parse([recipient.as_str()]).unwrap();
    (write(about(42), &content(values), &recipients).unwrap(), identities)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_written_is_read_record_by_record(values: Vec<Vec<u8>>, revision: u64) {
        let (identities, recipient) = Identities::generate();
        let recipients = Recipients::parse([recipient.as_str()]).unwrap();
        let file = write(about(revision), &content(&values), &recipients).unwrap();
        let (head, read) = open(&file, &identities).unwrap();
        prop_assert_eq!(read, content(&values));
        prop_assert_eq!((head.about, head.records), (about(revision), values.len() as u64));
    }
}

#[test]
fn a_changed_byte_anywhere_is_found() {
    let (file, identities) = sealed(&[vec![1; 40], vec![], vec![2; 40]]);
    for at in 0..file.len() {
        for flip in [1, 0x20, 0x80] {
            let mut damaged = file.clone();
            damaged[at] ^= flip;
            assert!(open(&damaged, &identities).is_err(), "byte {at} of {} by {flip}", file.len());
        }
    }
}

#[test]
fn a_file_that_ends_early_or_goes_on_is_refused() {
    let (file, identities) = sealed(&[vec![1; 40], vec![2; 40]]);
    for length in 0..file.len() {
        assert!(open(&file[..length], &identities).is_err(), "{length} bytes of {}", file.len());
    }
    let longer = [file.as_slice(), b"x"].concat();
    assert!(open(&longer, &identities).is_err());
}

#[test]
fn another_key_opens_nothing_and_says_so() {
    let (file, _) = sealed(&[vec![1; 40]]);
    let (other, _) = Identities::generate();
    assert!(matches!(open(&file, &other), Err(BackupError::WrongKey)));
    // The line in front of it is for everybody.
    assert_eq!(head(&file).unwrap().about, about(42));
}

#[test]
fn neither_records_nor_the_key_stand_in_the_clear() {
    let secret = b"a secret that nobody may read".to_vec();
    let (file, _) = sealed(std::slice::from_ref(&secret));
    for hidden in [secret.as_slice(), &[9; 32]] {
        assert!(!file.windows(hidden.len()).any(|window| window == hidden));
    }
}

#[test]
fn the_line_of_another_backup_is_not_believed() {
    let (identities, recipient) = Identities::generate();
    let recipients = Recipients::parse([recipient.as_str()]).unwrap();
    let [one, other] =
        [1, 2].map(|revision| write(about(revision), &content(&[vec![3; 9]]), &recipients).unwrap());
    let end = one.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mixed = [&one[..end], &other[end..]].concat();
    assert!(matches!(open(&mixed, &identities), Err(BackupError::Damaged(_))));
}

#[test]
fn a_newer_form_and_other_files_are_told_apart() {
    let (_, identities) = sealed(&[]);
    let newer = b"{\"tamdao_backup\": 2, \"anything\": true}\nrest".as_slice();
    assert!(matches!(open(newer, &identities), Err(BackupError::TooNew(2))));
    for other in [b"".as_slice(), b"hello\n", b"{}\n", b"{\"tamdao_backup\": 1}\n"] {
        assert!(matches!(open(other, &identities), Err(BackupError::NotOne(_))));
    }
}

#[test]
fn keys_that_are_none_are_refused_without_being_repeated() {
    assert!(matches!(Recipients::parse(["age1nonsense"]), Err(BackupError::Recipient(_))));
    assert!(matches!(Recipients::parse([]), Err(BackupError::Recipient(_))));
    let error = Identities::parse("AGE-SECRET-KEY-1WRONG").unwrap_err();
    assert!(!error.to_string().contains("WRONG"));
    assert!(Identities::parse("# only a comment\n").is_err());
}
