//! ImageService. The bytes come by another way (`transfer`, and the raw routes of `images`).

use tamdao_model::image::Image;
use tamdao_store::view::View;

use super::standard::{Standard, Writable, service};
use crate::refusal::Refusal;

impl Standard for Image {}

impl Writable for Image {
    fn check_unused(&self, view: &View) -> Result<(), Refusal> {
        let name = self.meta.name.as_str();
        let in_use = |what: String| {
            Refusal::precondition("InUse", format!("image {name:?} is needed by {what}"))
                .hint("delete that first")
        };
        // A volume that is made lives on its image: the nodes' files rest on it.
        if let Some(volume) = view.volumes.iter().find(|volume| volume.spec.image == Some(self.id())) {
            return Err(in_use(format!("volume {:?}", volume.meta.name.as_str())));
        }
        if let Some(vm) = view.vms.iter().find(|vm| vm.images().any(|image| image == self.id())) {
            return Err(in_use(format!("vm {:?}", vm.meta.name.as_str())));
        }
        Ok(())
    }
}

service! {
    image_service_server::ImageService, Image, image, images, agency, phase,
    get get_image(GetImageRequest) list list_images(ListImagesRequest -> ListImagesResponse)
    watch watch_images(WatchImagesRequest -> WatchImagesResponse as WatchImagesStream)
    create create_image(CreateImageRequest)
    update update_image(UpdateImageRequest)
    delete delete_image(DeleteImageRequest)
    extra {}
}
