# FCN on PASCAL VOC from an R2O backbone (A.2): conv5 dilated by 2, two 3 × 3 convolutions of 256 channels with dilation
# 6, 513 × 513 crops, 30,000 iterations of 16 images, rate divided by 10 at 7/10 and 9/10. Not reproduced yet.
# For MMSegmentation 1.x on 8 GPUs:
#   make export RUN=runs/mine FORMAT=mmseg OUT=backbone.pth
#   mim train mmsegmentation docs/mmsegmentation/fcn_r50_voc_r2o.py --launcher pytorch --gpus 8
_base_ = [
    "mmseg::_base_/models/fcn_r50-d8.py",
    "mmseg::_base_/datasets/pascal_voc12_aug.py",
    "mmseg::_base_/default_runtime.py",
]
crop_size = (513, 513)
data_preprocessor = dict(size=crop_size)  # its mean and std are ImageNet's, of RGB, as in pretraining
model = dict(
    data_preprocessor=data_preprocessor,
    pretrained=None,
    backbone=dict(
        type="ResNet",  # torchvision's stem, not ResNetV1c's
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        contract_dilation=False,
        init_cfg=dict(type="Pretrained", checkpoint="backbone.pth"),
    ),
    decode_head=dict(channels=256, num_convs=2, dilation=6, num_classes=21),
    auxiliary_head=dict(num_classes=21),
)
# A.2 scales by a ratio to the image's own size, MMSegmentation to a fixed one: VOC's longer side is 500 px in 95 of 100
# images (628 of 660 counted).
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(500, 500), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_sets = [
    dict(
        type="PascalVOCDataset",
        data_root="data/VOCdevkit/VOC2012",
        data_prefix=dict(img_path="JPEGImages", seg_map_path=masks),
        ann_file=f"ImageSets/Segmentation/{images}.txt",
        pipeline=train_pipeline,
    )
    for images, masks in (("train", "SegmentationClass"), ("aug", "SegmentationClassAug"))
]
train_dataloader = dict(batch_size=2, dataset=dict(datasets=train_sets))  # × 8 GPUs = 16
test_pipeline = [  # no Resize: at the original size
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4),  # of the paper's sweep 0.001 … 0.1
    clip_grad=None,
)
param_scheduler = [dict(type="MultiStepLR", begin=0, end=30000, by_epoch=False, milestones=[21000, 27000], gamma=0.1)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=30000, val_interval=3000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=3000),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
)
