"""Registration of the components of this plug-in."""

from textseg import ReportSection, Run, hookimpl
from textseg.registry import Register
from textseg_spine.order_of_levels import order_of_levels


@hookimpl
def textseg_register(register: Register) -> None:
    register.atlas("lumbar_spider", "textseg_spine.atlas:lumbar_spider")
    register.atlas("lumbar_mrspineseg", "textseg_spine.atlas:lumbar_mrspineseg")
    register.atlas("whole_spine", "textseg_spine.atlas:whole_spine")
    register.dataset("spider", "textseg_spine.spider:Spider")
    register.dataset("mrspineseg", "textseg_spine.mrspineseg:MRSpineSeg")
    register.dataset("lumbar_phantom", "textseg_spine.lumbar_phantom:LumbarPhantom")


@hookimpl
def textseg_report_sections(run: Run) -> list[ReportSection]:
    return order_of_levels(run)
