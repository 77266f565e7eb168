//! Volumes on a real directory with the real qemu-img, killed at every step of making and removing.

use super::*;
use crate::checkpoint::hang;
use crate::desired::VolumeIntent;

struct Bed {
    dir: tempfile::TempDir,
    ledger: Ledger,
    volume: Volume,
}

fn bed(size_mib: u32) -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let pool = WantedPool { name: "p".into(), path: dir.path().join("pool"), shared: false };
    let id = Uuid::from_u128(1);
    assert!(look_at_pool(id, &pool, false).0.ready);
    let wanted =
        WantedVolume { pool: id, intent: VolumeIntent::Make, size_mib, image: None, copy: 0, fresh: true };
    Bed { dir, ledger, volume: Volume { id: Uuid::from_u128(2), wanted, pool } }
}

impl Bed {
    fn files(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.volume.pool.path.join("volumes")).unwrap();
        let mut names: Vec<String> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn made(&self) -> bool {
        self.ledger.state().volumes.get(&self.volume.id).is_some_and(|record| record.made)
    }

    async fn image(&self, size: &str) -> Source {
        let path = self.dir.path().join("image");
        qemu_img(&["create", "-q", "-f", "qcow2"], &[path.as_os_str(), size.as_ref()]).await.unwrap();
        Source::read(path).await.unwrap()
    }
}

#[tokio::test]
async fn an_empty_volume_has_its_size() {
    let bed = bed(10);
    bed.volume.make(None, &bed.ledger).await.unwrap();
    let what = info(&bed.volume.path()).await.unwrap();
    assert_eq!((what.size_mib(), what.format.as_str()), (10, "qcow2"));
    assert!(bed.made());
    bed.volume.grow(20, &bed.ledger).await.unwrap();
    bed.volume.grow(20, &bed.ledger).await.unwrap();
    assert_eq!(info(&bed.volume.path()).await.unwrap().size_mib(), 20);
}

#[tokio::test]
async fn an_overlay_takes_its_image_s_size_and_refuses_less() {
    let mut bed = bed(0);
    let image = bed.image("30M").await;
    bed.volume.make(Some(&image), &bed.ledger).await.unwrap();
    let what = info(&bed.volume.path()).await.unwrap();
    assert_eq!(what.size_mib(), 30);
    assert_eq!(what.backing_filename.as_deref(), image.path.to_str());
    bed.volume.id = Uuid::from_u128(3);
    bed.volume.wanted.size_mib = 29;
    assert!(bed.volume.make(Some(&image), &bed.ledger).await.unwrap_err().is_permanent());
    assert_eq!(bed.files().len(), 1, "nothing is left of what was refused");
}

#[tokio::test]
async fn a_shared_pool_keeps_its_own_copy_by_a_relative_name() {
    let mut bed = bed(0);
    let image = bed.image("5M").await;
    bed.volume.pool.shared = true;
    bed.volume.wanted.image = Some(Digest::parse(&"a".repeat(64)).unwrap());
    bed.volume.make(Some(&image), &bed.ledger).await.unwrap();
    std::fs::remove_file(&image.path).unwrap();
    let what = info(&bed.volume.path()).await.unwrap();
    assert_eq!(what.backing_filename.unwrap(), format!("../images/{}", "a".repeat(64)));
    let check = qemu_img(&["info", "--backing-chain"], &[bed.volume.path().as_os_str()]).await;
    assert!(check.is_ok(), "the chain opens without the cache: {check:?}");
}

#[tokio::test]
async fn hostile_images_are_refused() {
    let bed = bed(0);
    let other = bed.image("5M").await;
    let hostile = bed.dir.path().join("hostile");
    let backing = other.path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing], &[hostile.as_os_str()])
        .await
        .unwrap();
    let hostile = Source::read(hostile).await.unwrap();
    let error = bed.volume.make(Some(&hostile), &bed.ledger).await.unwrap_err();
    assert!(error.is_permanent(), "{error}");
}

/// Kills a making at the checkpoint, and says what the next look finds.
async fn kill_at(bed: &Bed, name: &'static str) -> (FileFact, bool) {
    let reached = hang::at(name);
    tokio::select! {
        done = bed.volume.make(None, &bed.ledger) => panic!("went past {name}: {done:?}"),
        reached = reached => reached.unwrap(),
    }
    (look(&bed.volume.pool.path, bed.volume.id), bed.made())
}

#[tokio::test]
async fn killed_at_any_step_there_is_one_file_in_the_end() {
    for (name, exists, made) in
        [("volume-aside", false, false), ("volume-renamed", true, false), ("volume", true, true)]
    {
        let bed = bed(10);
        let (file, known) = kill_at(&bed, name).await;
        assert_eq!((file.exists, known), (exists, made), "{name}");
        match (exists, made) {
            (false, _) => bed.volume.make(None, &bed.ledger).await.unwrap(),
            (true, false) => bed.volume.recognise(&bed.ledger).await.unwrap(),
            (true, true) => {}
        }
        assert!(bed.made());
        assert_eq!(bed.files(), [format!("{}.qcow2", bed.volume.id)], "{name}");
    }
}

#[tokio::test]
async fn a_file_that_is_there_is_never_made_over() {
    let bed = bed(10);
    std::fs::write(bed.volume.path(), b"precious").unwrap();
    assert!(bed.volume.make(None, &bed.ledger).await.is_err());
    assert_eq!(std::fs::read(bed.volume.path()).unwrap(), b"precious");
}

#[tokio::test]
async fn deleting_twice_is_no_error_and_it_does_not_come_back() {
    let bed = bed(10);
    bed.volume.make(None, &bed.ledger).await.unwrap();
    bed.volume.delete(&bed.ledger).await.unwrap();
    bed.volume.delete(&bed.ledger).await.unwrap();
    assert!(bed.files().is_empty());
    std::fs::write(bed.volume.path(), b"back").unwrap();
    assert!(bed.volume.recognise(&bed.ledger).await.is_err());
}

#[tokio::test]
async fn nothing_is_called_deleted_while_the_pool_is_gone() {
    let bed = bed(10);
    bed.volume.make(None, &bed.ledger).await.unwrap();
    let elsewhere = bed.dir.path().join("unmounted");
    std::fs::rename(&bed.volume.pool.path, &elsewhere).unwrap();
    std::fs::create_dir_all(bed.volume.pool.path.join("volumes")).unwrap();
    assert!(bed.volume.delete(&bed.ledger).await.is_err());
    assert!(bed.made());
}

#[test]
fn pools_without_their_marker_are_absent() {
    let dir = tempfile::tempdir().unwrap();
    let id = Uuid::from_u128(1);
    let mut pool = WantedPool { name: "p".into(), path: dir.path().join("pool"), shared: true };
    assert!(!look_at_pool(id, &pool, false).0.ready, "a shared pool is not made");
    pool.shared = false;
    let (fact, made) = look_at_pool(id, &pool, false);
    assert!(fact.ready && made && fact.capacity_mib > 0);
    assert!(!look_at_pool(Uuid::from_u128(2), &pool, false).0.ready, "it is another pool's");
    std::fs::remove_dir_all(&pool.path).unwrap();
    let (fact, _) = look_at_pool(id, &pool, true);
    assert!(!fact.ready && !pool.path.exists(), "a known pool is not made again: {}", fact.message);
}
