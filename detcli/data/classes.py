"""Class names and category ids of the datasets that models were published for, in label order."""

from __future__ import annotations

from dataclasses import replace

from detcli.structures import ClassMap

COCO_NAMES = """
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light,
11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow,
22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee,
35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard,
43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple,
54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch,
64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard,
77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors,
88 teddy bear, 89 hair drier, 90 toothbrush
"""

COCO_STUFF_NAMES = """
92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118 floor-wood, 119 flower,
122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net, 141 pillow, 144 platform, 145 playingfield,
147 railroad, 148 river, 149 road, 151 roof, 154 sand, 155 sea, 156 shelf, 159 snow, 161 stairs, 166 tent, 168 towel,
171 wall-brick, 175 wall-stone, 176 wall-tile, 177 wall-wood, 178 water-other, 180 window-blind, 181 window-other,
184 tree-merged, 185 fence-merged, 186 ceiling-merged, 187 sky-other-merged, 188 cabinet-merged, 189 table-merged,
190 floor-other-merged, 191 pavement-merged, 192 mountain-merged, 193 grass-merged, 194 dirt-merged, 195 paper-merged,
196 food-other-merged, 197 building-other-merged, 198 rock-merged, 199 wall-other-merged, 200 rug-merged
"""

COCO_KEYPOINTS = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear"),
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
)

VOC_NAMES = """
aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person,
pottedplant, sheep, sofa, train, tvmonitor
"""

CITYSCAPES_NAMES = "24 person, 25 rider, 26 car, 27 truck, 28 bus, 31 train, 32 motorcycle, 33 bicycle"


def _parsed(text: str) -> ClassMap:
    """Return the classes of ``"3 car, 5 airplane"``; without ids, they count from 1."""
    items = [item.strip() for item in text.replace("\n", " ").split(",")]
    pairs = [item.split(" ", 1) if item[0].isdigit() else (number, item) for number, item in enumerate(items, 1)]
    return ClassMap(tuple(name for _, name in pairs), tuple(int(number) for number, _ in pairs))


COCO = _parsed(COCO_NAMES)
COCO_STUFF = _parsed(COCO_STUFF_NAMES)

CLASSES = {
    "coco": COCO,
    "coco_panoptic": replace(COCO, stuff=COCO_STUFF.names, stuff_ids=COCO_STUFF.ids),
    "coco_person": replace(_parsed("1 person"), keypoints=COCO_KEYPOINTS),
    "coco_person_bicycle_car": _parsed("1 person, 2 bicycle, 3 car"),
    "voc": _parsed(VOC_NAMES),
    "cityscapes": _parsed(CITYSCAPES_NAMES),
}
"""By the dataset's name in published rows, of those with stuff ``_panoptic`` after it."""


def numbered(count: int) -> ClassMap:
    """Return `count` classes whose names nobody knows: ``class 1``, ``class 2``, ..."""
    return ClassMap(tuple(f"class {number}" for number in range(1, count + 1)), tuple(range(1, count + 1)))


def with_ids(names: tuple[str, ...]) -> ClassMap:
    """Return the classes called `names`, with the ids of the published dataset that has these, or else from 1 on.

    Names of published datasets may have ``_`` for spaces, as those of MMDetection 1.x have.
    """
    spaced = tuple(name.replace("_", " ") for name in names)
    for classes in CLASSES.values():
        if set(spaced) <= set(classes.names):
            id_of = dict(zip(classes.names, classes.ids, strict=True))
            return ClassMap(spaced, tuple(id_of[name] for name in spaced))
    return ClassMap(names, tuple(range(1, len(names) + 1)))
