"""The table of rules: what each project's files hold, and what of it is the backbone.

A row's `source` says where its names were read: in the project's code that writes, converts or loads its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from train.models.weights.names import (
    CAFFE2,
    DETECTRON2,
    HAIKU,
    MM_VIT,
    RESNET,
    SEQUENTIAL,
    TIMM_VIT,
    VIT,
    Naming,
)

# Parts of names that say nothing: they are taken off wherever they stand before a backbone, as often as they do.
WRAPPERS = frozenset({
    "state_dict", "model", "module", "_orig_mod", "model_state_dict", "model_state", "classy_state_dict", "base_model",
    "blobs", "params", "backbone", "encoder", "net", "network", "trunk", "_feature_blocks", "body", "bottom_up",
    "resnet", "vit", "features", "feature_extractor", "experiment_state", "0",
})  # fmt: skip
FC, HEAD, MLP = r"fc\.(weight|bias)", r"head\.(weight|bias)", r"(fc|head|projector)\d?\..*"
MSRA_MEAN, MSRA_STD = (123.675 / 255, 116.28 / 255, 103.53 / 255), (1 / 255, 1 / 255, 1 / 255)  # RGB of BGR 0–255


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A row: the names of one project's files.

    Attributes:
        source: repository and file in which the names were read.
        namings: of the backbone's own weights.
        online: the parts of a name, beside wrappers, that lead to the network that is taken; the best first.
        target: those that lead to the network that follows it.
        left_out: naming → pattern of what lies among a backbone's weights and is not of it, by their names.
        marks: patterns that all must be in the file for `auto` to choose the row; with its name given, none must.
        auto: whether `auto` may choose the row.
        mean, std: of RGB in [0, 1], as the project trains.
        heads: backbone's name → heads of its attention.
        same_padding, stride_in_1x1, bgr: see `Form`; the first convolution takes blue first.
    """

    name: str
    source: str
    namings: tuple[Naming, ...]
    online: tuple[str, ...] = ("",)
    target: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    marks: tuple[str, ...] = ()
    auto: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    heads: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    same_padding: bool = False
    stride_in_1x1: bool = False
    bgr: bool = False


_FOLLOWERS = ("momentum_backbone", "backbone_momentum", "target_encoder", "target_net", "target_network", "encoder_k")
_HAIKU_REST = r".*(projector|predictor|classifier|logits).*|.*/(hidden|counter)"
_HEADS = {RESNET.name: FC, VIT.name: r"heads\.head\.(weight|bias)", TIMM_VIT.name: HEAD}

RULES = (
    # train/models/backbone_file.py: our backbone.pt, read by its own strict reader; a run folder holds one.
    Rule(name="r2o", source="r2o: train/models/backbone_file.py", namings=(RESNET, VIT), auto=False),
    # R2O.online and R2O.target, each {backbone, projector}, below "model".
    Rule(name="r2o_checkpoint", source="r2o: train/engine/checkpoint.py, train/r2o/model.py", namings=(RESNET, VIT),
         online=("online",), target=("target",), marks=(r"^fingerprint$", r"^model/online\.backbone\.")),
    # EncoderwithProjection.encoder is nn.Sequential(*resnet.children()[:-2]). Its code is yaox12/BYOL-PyTorch's, and
    # so are its names: a file of either is read alike.
    Rule(name="r2o_release", source="KKallidromitis/r2o: model/basic_modules.py, trainer/r2o_trainer.py",
         namings=(SEQUENTIAL, RESNET), online=("online_network",), target=("target_network",),
         left_out={RESNET.name: FC}),
    # base_encoder.head (ViT) and .fc (ResNet) are the projector. Its vit_small has 12 heads.
    Rule(name="mocov3", source="facebookresearch/moco-v3: moco/builder.py, vits.py, main_lincls.py",
         namings=(RESNET, TIMM_VIT), online=("base_encoder",), target=("momentum_encoder",),
         left_out={RESNET.name: MLP, TIMM_VIT.name: MLP}, heads={"vit_s_16": 12}),
    # The teacher is what DINO evaluates. The released "backbone only" files have timm's or torchvision's names.
    Rule(name="dino", source="facebookresearch/dino: main_dino.py, utils.py", namings=(RESNET, TIMM_VIT),
         online=("teacher", "student"), target=("teacher",), left_out={RESNET.name: MLP, TIMM_VIT.name: MLP}),
    # encoder_q is nn.Sequential(backbone, neck), and backbone is encoder_q[0] once more.
    Rule(name="densecl", source="WXinlong/DenseCL: openselfsup/models/densecl.py, tools/extract_backbone_weights.py",
         namings=(RESNET,), online=("", "encoder_q"), target=("encoder_k",), left_out={RESNET.name: FC},
         marks=(r"(^|[./])queue2$",)),
    # A MoCo with an FPN inside the encoder: fpn_lateral2 …, fpn_output2 …
    Rule(name="resim", source="Tete-Xiao/ReSim: moco/builder.py, moco/models.py", namings=(RESNET,),
         online=("encoder_q",), target=("encoder_k",), left_out={RESNET.name: r"(fc|fpn_\w+)\..*"},
         marks=(r"[./]fpn_(lateral|output)\d",)),
    # Its transfers take the teacher, encoder_k.
    Rule(name="slotcon", source="CVMI-Lab/SlotCon: models/slotcon.py, transfer/detection/convert_pretrain_to_d2.py",
         namings=(RESNET,), online=("encoder_k", "encoder_q"), target=("encoder_k",),
         left_out={RESNET.name: r"fc\d?\..*"}, marks=(r"[./]grouping_[qk]\.",)),
    Rule(name="pixpro", source="zdaxie/PixPro: contrast/models/PixPro.py, transfer/detection/convert_pretrain_to_d2.py",
         namings=(RESNET,), target=("encoder_k",), left_out={RESNET.name: r"fc\d?\..*"},
         marks=(r"[./]encoder_k\.", r"[./]projector_k\.")),
    # EncoderObj is {backbone, neck}; neck.proj_obj and predictor_obj are LEWEL's own.
    Rule(name="lewel", source="LayneH/LEWEL: models/lewel.py, utils/extract_backbone.py", namings=(RESNET,),
         online=("online_net", "encoder_q"), target=("target_net", "encoder_k"), left_out={RESNET.name: MLP},
         marks=(r"(proj|predictor)_obj\.",)),
    # fc is the projector: linear in v1, fc.0 and fc.2 in v2.
    Rule(name="moco", source="facebookresearch/moco: moco/builder.py, main_lincls.py", namings=(RESNET, TIMM_VIT),
         online=("encoder_q",), target=("encoder_k",), left_out={RESNET.name: MLP, TIMM_VIT.name: MLP}),
    Rule(name="swav", source="facebookresearch/swav: src/resnet50.py, hubconf.py", namings=(RESNET,),
         left_out={RESNET.name: r"(projection_head|prototypes)\..*"},
         marks=(r"(^|[./])(projection_head|prototypes)\.",)),
    # What follows the online network has one of several names; the projector may stand where torchvision has fc.
    Rule(name="byol", source="vturrisi/solo-learn: solo/methods/base.py; lightly-ai/lightly: BYOL; lucidrains/"
         "byol-pytorch; open-mmlab/mmpretrain: selfsup/byol.py", namings=(RESNET, SEQUENTIAL, TIMM_VIT),
         online=("", "online_encoder", "online_net"), target=_FOLLOWERS,
         left_out={RESNET.name: MLP, TIMM_VIT.name: MLP},
         marks=(rf"(^|[./])({'|'.join(_FOLLOWERS[:-1])})\.", r"predict(or|ion)")),
    # backbone.fc is the projector: fc.0 and fc.2.
    Rule(name="simclr", source="sthalles/SimCLR: models/resnet_simclr.py, simclr.py", namings=(RESNET,),
         left_out={RESNET.name: r"fc\.\d\.(weight|bias)"}, marks=(r"[./]fc\.[02]\.weight$",)),
    # Haiku's ResNet, of padding "SAME". Files that others converted to torchvision's names need the name of this row.
    Rule(name="byol_deepmind", source="google-deepmind/deepmind-research: byol/byol_experiment.py, byol/utils/"
         "checkpointing.py; ajtejankar/byol-convert: convert.py", namings=(HAIKU, RESNET), online=("online",),
         target=("target",), left_out={HAIKU.name: _HAIKU_REST, RESNET.name: FC}, marks=(r"^experiment_state/",),
         same_padding=True),
    # An .npy of a dict of haiku's parameters and state.
    Rule(name="detcon", source="google-deepmind/detcon: README.md, detcon_b.py, utils/networks.py", namings=(HAIKU,),
         online=("", "online"), target=("target",), left_out={HAIKU.name: _HAIKU_REST}, same_padding=True),
    # Files with the decoder; the released encoders alone have timm's names.
    Rule(name="mae", source="facebookresearch/mae: models_mae.py, util/misc.py", namings=(TIMM_VIT,),
         left_out={TIMM_VIT.name: r"decoder_.*|mask_token|" + HEAD}, marks=(r"(^|[./])(decoder_\w+|mask_token)",)),
    # MSRA's, in Caffe2's names: batch norm is a scale and a bias, pixels are BGR from 0 to 255.
    Rule(name="detectron2_msra", source="facebookresearch/detectron2: detectron2/checkpoint/c2_model_loading.py, "
         "MODEL_ZOO.md", namings=(CAFFE2,), left_out={CAFFE2.name: r"(fc1000|pred)_[wb]|.*_momentum|lr|.*/lr"},
         mean=MSRA_MEAN, std=MSRA_STD, stride_in_1x1=True, bgr=True),
    # What projects convert for detectron2 (RGB), and what it trains; see `detectron2_input` for the latter's pixels.
    Rule(name="detectron2", source="facebookresearch/detectron2: tools/convert-torchvision-to-d2.py, "
         "detectron2/checkpoint/detection_checkpoint.py", namings=(DETECTRON2,),
         left_out={DETECTRON2.name: r"stem\.(fc|head|projector)\d?\..*|pixel_(mean|std)"}),
    # timm evaluates the average where there is one.
    Rule(name="timm_ema", source="huggingface/pytorch-image-models: timm/models/_helpers.py load_state_dict(use_ema)",
         namings=(RESNET, TIMM_VIT), online=("state_dict_ema", "model_ema"), left_out=_HEADS),
    Rule(name="vissl", source="facebookresearch/vissl: extra_scripts/convert_vissl_to_torchvision.py",
         namings=(RESNET, TIMM_VIT), left_out=_HEADS, marks=(r"_feature_blocks\.|^classy_state_dict/",)),
    # MMPretrain, MMSegmentation, MMDetection, OpenSelfSup: the backbone beside neck and heads.
    Rule(name="mmengine", source="open-mmlab/mmpretrain: mmpretrain/models/backbones/vision_transformer.py, "
         "selfsup/moco.py", namings=(RESNET, MM_VIT), target=(*_FOLLOWERS, "momentum_encoder"),
         marks=(r"(^|[./])backbone\.", r"^(meta|message_hub)$")),
    # One attribute of a LightningModule; solo-learn's and lightly's networks that follow have these names.
    Rule(name="lightning", source="Lightning-AI/pytorch-lightning: trainer/connectors/checkpoint_connector.py",
         namings=(RESNET, SEQUENTIAL, TIMM_VIT, VIT), target=_FOLLOWERS,
         left_out={RESNET.name: MLP, VIT.name: r"heads\..*", TIMM_VIT.name: MLP},
         marks=(r"^(pytorch-lightning_version|hyper_parameters)$",)),
    Rule(name="torchvision", source="pytorch/vision: torchvision/models/resnet.py, vision_transformer.py",
         namings=(RESNET, VIT), left_out=_HEADS),
    Rule(name="timm", source="huggingface/pytorch-image-models: timm/models/vision_transformer.py, resnet.py",
         namings=(TIMM_VIT, RESNET), left_out=_HEADS),
    # lightly's nn.Sequential(*list(resnet.children())[:-1]), saved alone or below "backbone".
    Rule(name="sequential", source="lightly-ai/lightly: examples/pytorch/byol.py", namings=(SEQUENTIAL,)),
    # Its released .pth has torchvision's names, its .pkl detectron2's; the code that made them is not public.
    Rule(name="detco", source="xieenze/DetCo: README.md, benchmarks/detection/convert-pretrain-to-detectron2.py",
         namings=(RESNET, DETECTRON2), online=("", "encoder_q"), left_out={RESNET.name: MLP}, auto=False),
    # Weights of timm whose pretrained_cfg says mean 0.5 and std 0.5 (ViTs of augreg); names do not tell.
    Rule(name="timm_inception", source="huggingface/pytorch-image-models: timm/data/constants.py",
         namings=(TIMM_VIT, RESNET), left_out=_HEADS, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), auto=False),
)  # fmt: skip
FORMATS_OF_WEIGHTS = tuple(rule.name for rule in RULES)
