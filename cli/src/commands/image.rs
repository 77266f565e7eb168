//! `tamdao image`: the standard verbs, and the import of a file or a URL. An import that broke off goes on when it is
//! repeated: an image of that name that still waits for its bytes is taken.

use std::path::Path;

use anyhow::Result;
use bytes::Bytes;
use tamdao_proto::v1::transfer_service_client::TransferServiceClient;
use tamdao_proto::v1::upload_image_request::Part;
use tamdao_proto::v1::{Image, ImageKind, ImagePhase, ImageSpec, Metadata, UploadImageRequest, UploadTarget};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::standard;
use crate::app::App;
use crate::args::{ImageImportArgs, ImageKindArg, ImageUpdateArgs, ImageVerb, NameArg};
use crate::given;
use crate::problem::{ExitStatus, Problem};
use crate::progress::ByteBar;
use crate::resource::{Makeable, Place, Resource};
use crate::wait::{Goal, Verdict, until};

/// What one message carries; the contract allows 1 MiB.
const CHUNK: usize = 512 * 1024;
/// Chunks read ahead of the network.
const AHEAD: usize = 4;

pub async fn run(app: &App, verb: ImageVerb) -> Result<ExitStatus> {
    match verb {
        ImageVerb::List(args) => standard::list::<Image>(app, &args.list, args.private).await,
        ImageVerb::Get(args) => standard::get::<Image>(app, &NameArg { name: args.name }, args.private).await,
        ImageVerb::Import(args) => import(app, &args).await,
        ImageVerb::Update(args) => update(app, &args).await,
        ImageVerb::Delete(args) => standard::delete::<Image>(app, &args.delete, args.private, false).await,
    }
}

async fn update(app: &App, args: &ImageUpdateArgs) -> Result<ExitStatus> {
    standard::update::<Image>(app, &args.edit, args.private, |image, mask| {
        if let Some(memory) = args.min_memory {
            image.spec.get_or_insert_default().min_memory_mib = memory;
            mask.push("spec.min_memory_mib".to_owned());
        }
        Ok(())
    })
    .await
}

async fn import(app: &App, args: &ImageImportArgs) -> Result<ExitStatus> {
    let place = app.place::<Image>(&args.name, args.private)?;
    let mut source = match &args.file {
        Some(file) => Some(Source::open(file).await?),
        None => None,
    };
    if let Some(source) = &mut source {
        // Kernels and ram disks are gzip by their own right; whoever boots them unpacks them.
        source.gzip &= matches!(args.kind, ImageKindArg::Disk | ImageKindArg::Iso);
    }
    let image = wanted(args, &place)?;
    if args.dry_run {
        standard::create(app, &place, image, true).await?;
        return Ok(ExitStatus::Done);
    }
    let made = Image::create(app.client()?, &place.agency, image, false).await;
    let mut image = match (made, &source) {
        (Err(problem), Some(_)) if problem.code == Some(Code::AlreadyExists) => {
            unfinished(app, &place, problem).await?
        }
        (made, _) => made.map_err(|problem| problem.about(&place.name))?,
    };
    if let Some(source) = &source {
        image = upload(app, &place, source).await?;
    }
    if args.wait.no_wait {
        return standard::done(app, &image, "accepted");
    }
    let image = until(app, image, &args.wait, Goal::State(&judge)).await?;
    standard::done(app, &image, "")
}

fn judge(image: &Image) -> Verdict {
    match image.status.as_ref().map_or(ImagePhase::Unspecified, |status| status.phase()) {
        ImagePhase::Available => Verdict::Reached,
        ImagePhase::Failed => Verdict::Lost,
        ImagePhase::Unspecified | ImagePhase::Pending | ImagePhase::Importing => Verdict::Going,
    }
}

fn wanted(args: &ImageImportArgs, place: &Place) -> Result<Image> {
    let kind = match args.kind {
        ImageKindArg::Disk => ImageKind::Disk,
        ImageKindArg::Kernel => ImageKind::Kernel,
        ImageKindArg::Initrd => ImageKind::Initrd,
        ImageKindArg::Iso => ImageKind::Iso,
    };
    Ok(Image {
        metadata: Some(Metadata {
            name: place.name.clone(),
            agency: place.agency.clone(),
            display_name: args.display_name.clone().unwrap_or_default(),
            labels: given::pairs("label", &args.labels)?,
            ..Default::default()
        }),
        spec: Some(ImageSpec {
            kind: kind.into(),
            url: args.url.clone().unwrap_or_default(),
            sha256: args.sha256.clone().unwrap_or_default(),
            min_memory_mib: args.min_memory.unwrap_or_default(),
        }),
        status: None,
    })
}

/// The image of this name, if it still waits for its bytes; else the refusal stands.
async fn unfinished(app: &App, place: &Place, refusal: Problem) -> Result<Image> {
    let present = Image::fetch(app.client()?, place).await?;
    let phase = present.status.as_ref().map_or(ImagePhase::Unspecified, |status| status.phase());
    let for_upload = present.spec.as_ref().is_none_or(|spec| spec.url.is_empty());
    if for_upload && phase == ImagePhase::Pending {
        app.output.note(&format!("{place}: was made before and still waits for its bytes"));
        return Ok(present);
    }
    Err(refusal.about(&place.name).hint(format!("remove it first with `tamdao image delete {place}`")).into())
}

/// The file to send.
struct Source {
    path: std::path::PathBuf,
    size: u64,
    gzip: bool,
}

impl Source {
    async fn open(path: &Path) -> Result<Self> {
        let wrong =
            |error: std::io::Error| Problem::usage(format!("cannot read {}: {error}", path.display()));
        let mut file = tokio::fs::File::open(path).await.map_err(wrong)?;
        let about = file.metadata().await.map_err(wrong)?;
        if !about.is_file() {
            return Err(Problem::usage(format!("{} is not a file", path.display())).into());
        }
        if about.len() == 0 {
            return Err(Problem::usage(format!("{} is empty", path.display())).into());
        }
        let mut magic = [0; 2];
        // The name may lie, the first bytes do not.
        let gzip = file.read_exact(&mut magic).await.is_ok() && magic == [0x1f, 0x8b];
        Ok(Self { path: path.to_owned(), size: about.len(), gzip })
    }
}

async fn upload(app: &App, place: &Place, source: &Source) -> Result<Image> {
    let bar = ByteBar::new(&app.output, &format!("{place}: sending {}", source.path.display()), source.size);
    let target = UploadTarget {
        agency: place.agency.clone(),
        name: place.name.clone(),
        size_bytes: source.size,
        gzip: source.gzip,
    };
    let unreadable = std::sync::Arc::new(std::sync::Mutex::new(None));
    let sent = app.client()?.call_long(|wire| {
        bar.restart();
        let (sender, receiver) = mpsc::channel(AHEAD);
        let (target, path, bar, unreadable) =
            (target.clone(), source.path.clone(), bar.clone(), unreadable.clone());
        tokio::spawn(async move {
            if let Err(error) = send_file(&path, target, &sender, &bar).await
                && let Ok(mut unreadable) = unreadable.lock()
            {
                *unreadable = Some(error);
            }
        });
        async move { TransferServiceClient::new(wire).upload_image(ReceiverStream::new(receiver)).await }
    });
    let sent = sent.await;
    bar.finish();
    if let Ok(mut unreadable) = unreadable.lock()
        && let Some(error) = unreadable.take()
    {
        let problem = Problem::failed(format!("cannot read {}: {error}", source.path.display()));
        return Err(problem.hint("repeat the command: the image waits for its bytes").into());
    }
    let answer = sent.map_err(|problem| problem.about(&place.name))?;
    answer
        .image
        .ok_or_else(|| Problem::usage(format!("{place}: the controller did not say what it stored")).into())
}

/// Sends the target and then the file. A receiver that is gone has its reason, told by the answer.
async fn send_file(
    path: &Path,
    target: UploadTarget,
    sender: &mpsc::Sender<UploadImageRequest>,
    bar: &ByteBar,
) -> std::io::Result<()> {
    let mut left = target.size_bytes;
    let mut file = tokio::fs::File::open(path).await?;
    let mut message = UploadImageRequest { part: Some(Part::Target(target)) };
    loop {
        if sender.send(message).await.is_err() || left == 0 {
            return Ok(());
        }
        let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        // A file that shrinks meanwhile is an error; one that grows is sent as long as it was.
        file.read_exact(&mut chunk).await?;
        left -= chunk.len() as u64;
        bar.advance(chunk.len() as u64);
        message = UploadImageRequest { part: Some(Part::Chunk(Bytes::from(chunk))) };
    }
}
