"""Registration of the components of this plug-in."""

from textseg import hookimpl
from textseg.registry import Register


@hookimpl
def textseg_register(register: Register) -> None:
    register.dataset("nifti_folder", "textseg_folders.nifti_folder:NiftiFolder")
    register.dataset("image_folder", "textseg_folders.image_folder:ImageFolder")
    register.dataset("nnunet_raw", "textseg_folders.nnunet_raw:NnunetRaw")
