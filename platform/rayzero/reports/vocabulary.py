"""The findings that reports name: one canonical name each, and the phrases that mean it.

Entries that a radiologist tells apart stay apart: an airspace opacity is not a consolidation, a nodule is not a
mass, a granuloma is not a nodule. No phrase of one entry may stand in for another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_HEART = r"(?:heart|cardiac silhouette|cardiac contour|cardiac shadow)(?: size)?"
_MEDIASTINUM = r"(?:cardiomediastinal|mediastinal|cardio-mediastinal)(?: silhouette| contours?)?|mediastinum"
_BIG = r"(?: \w+){0,3} (?:enlarged|widened|prominent)"
_CHEST = r"(?:cardiopulmonary|cardiac|pulmonary|intrathoracic|thoracic|chest|lung|pleural|cardio-pulmonary)"
_DISORDER = r"(?:abnormalit(?:y|ies)|disease|process(?:es)?|findings?|pathology|diseases)"


@dataclass(frozen=True)
class Finding:
    """A finding: its canonical ``name``, regular expressions that mean it, and whether a place adds to it."""

    name: str
    phrases: tuple[str, ...]
    located: bool = True
    kind: str = ""
    """The wider finding that this one entails: a pacemaker is a support device."""


def _here(name: str, *phrases: str) -> Finding:
    return Finding(name, phrases)


def _whole(name: str, *phrases: str) -> Finding:
    return Finding(name, phrases, located=False)


def _device(name: str, *phrases: str, located: bool = False) -> Finding:
    return Finding(name, phrases, located=located, kind="support device")


FINDINGS: tuple[Finding, ...] = (
    # Heart, vessels, mediastinum
    _whole("cardiomegaly", "cardiomegaly", rf"{_HEART}{_BIG}", rf"enlarged {_HEART}", "cardiac enlargement",
           r"enlargement of (?:the )?(?:heart|cardiac silhouette)", rf"enlarged {_HEART}", "cardiac hypertrophy"),
    _whole("enlarged cardiomediastinum", rf"(?:{_MEDIASTINUM}){_BIG}", rf"(?:enlarged|widened) (?:{_MEDIASTINUM})",
           "mediastinal widening", r"widening of (?:the )?mediastinum", "enlarged cardiomediastinum"),
    _whole("aortic tortuosity", r"tortuous (?:and \w+ )?(?:thoracic |descending )*aorta", "aortic tortuosity",
           r"(?:thoracic |descending )*aorta(?: \w+){0,3} tortuous", r"tortuosity of (?:the )?(?:thoracic )?aorta",
           r"(?:ectatic|uncoiled|unfolded) (?:thoracic )?aorta", r"ectasia of (?:the )?(?:thoracic )?aorta"),
    _whole("aortic atherosclerosis", r"atherosclero\w+(?: \w+){0,4} aort(?:a|ic)(?: arch| knob)?",
           r"(?:aortic|aorta)(?: \w+){0,3} (?:atherosclero\w+|calcifications?|calcified)", "atherosclero(?:sis|tic)",
           r"calcifi(?:ed|cations?)(?: \w+){0,4} aort(?:a|ic)(?: arch| knob)?", "vascular calcifications?"),
    _whole("aortic aneurysm", "aortic aneurysm", "aneurysm(?:al)?(?: dilatation| dilation)?"),
    _whole("pulmonary vascular congestion", r"(?:pulmonary |central |mild )*(?:vascular|venous) congestion",
           "vascular engorgement", r"(?:pulmonary )?vascular prominence", "cephalization",
           r"pulmonary (?:vascularity|vasculature|vessels)(?: \w+){0,3} (?:prominent|increased|engorged|congested)"),
    _whole("pulmonary arterial hypertension", r"pulmonary (?:arterial |artery )?hypertension"),
    _whole("heart failure", r"(?:congestive )?heart failure", "chf", "cardiac decompensation", "volume overload"),
    _whole("pericardial effusion", "pericardial effusions?"),
    _here("hilar enlargement", r"hilar (?:enlargement|prominence|fullness)", r"enlarged hil(?:um|a)",
          r"prominen(?:t|ce of the) (?:\w+ )?hil(?:um|a)"),
    _here("lymphadenopathy", "(?:hilar |mediastinal |hilar and mediastinal )?(?:lymph)?adenopathy",
          "enlarged lymph nodes?"),
    _here("thyroid lesion", "thyroid (?:mass(?:es)?|nodules?|lesions?|enlargement)"),
    _here("soft tissue mass", "(?:soft tissue|breast|chest wall|abdominal|axillary|paraspinal) mass(?:es)?"),
    _here("bone lesion", "(?:bone|bony|osseous|lytic|sclerotic|blastic|rib)(?: \\w+)? lesions?"),
    _here("joint effusion", "(?:joint|knee|shoulder) effusions?"),
    _here("mediastinal mass", "mediastinal mass(?:es)?"),
    _here("hilar mass", "hilar mass(?:es)?"),
    _whole("pneumomediastinum", "pneumomediastinum", "mediastinal emphysema"),
    # Pleura
    _here("pleural effusion", "(?:pleural )?effusions?", "pleural fluid", "parapneumonic effusions?"),
    _here("costophrenic angle blunting",
           r"blunting of (?:the )?(?:\w+ ){0,3}costophrenic (?:angles?|sulc\w+|recess\w*)",
          r"blunted (?:\w+ ){0,2}costophrenic (?:angles?|sulc\w+)", "costophrenic (?:angle|sulcus) blunting",
          r"costophrenic (?:angles?|sulc\w+)(?: \w+){0,3} blunted"),
    _here("pneumothorax", "(?:hydro)?pneumothora(?:x|ces)"),
    _here("pleural thickening", "pleural thickening", "apical thickening", "apical capping", "pleural scarring"),
    _here("pleural plaque", "pleural plaques?", "pleural calcifications?", "calcified pleural plaques?"),
    # Lungs
    _here("consolidation", "consolidations?", "consolidative(?: change| changes| opacity| opacities| process)?"),
    _here("airspace opacity", "air ?-?space (?:opacit(?:y|ies)|disease|process(?:es)?|densit(?:y|ies))",
          "alveolar (?:opacit(?:y|ies)|disease|process)"),
    _here("infiltrate", "infiltrat(?:e|es|ion|ions|ive process)"),
    _here("lung opacity", "(?:lung |pulmonary )?opacit(?:y|ies)", "opacification",
           "(?:lung |pulmonary )densit(?:y|ies)",
          "hazy density"),
    _here("nodular opacity", "nodular (?:opacit(?:y|ies)|densit(?:y|ies))", "nodular area"),
    _here("interstitial opacity", r"interstitial (?:markings?|opacit(?:y|ies)|prominence|thickening|changes?|pattern)",
          "interstitial (?:lung )?(?:disease|infiltrates?)", "reticular (?:opacit(?:y|ies)|markings)",
           "reticulonodular \\w+"),
    _here("atelectasis", "atelecta(?:sis|ses)", "atelectatic(?: change| changes| opacit(?:y|ies))?"),
    _here("pneumonia", "(?:broncho)?pneumonias?", "pneumonic infiltrates?"),
    _here("aspiration", "aspiration(?: pneumonia| pneumonitis)?"),
    _whole("pulmonary edema", "(?:pulmonary |interstitial |alveolar )*o?edema"),
    _here("lung nodule", "(?:lung |pulmonary )?nodules?"),
    _here("calcified lung nodule", "calcified (?:lung |pulmonary )?nodules?"),
    _here("lung mass", "(?:lung |pulmonary )?mass(?:es)?(?! effect)"),
    _here("lung lesion", "(?:lung |pulmonary )?lesions?"),
    _here("calcified granuloma", r"calcified (?:\w+ )?granulom(?:a|as|ata)"),
    _here("granuloma", "granulom(?:a|as|ata)"),
    _here("granulomatous disease",
           r"(?:calcified )?granulomatous (?:disease|changes?|process|infection|calcifications?)"),
    _whole("emphysema", "emphysema", "emphysematous(?: change| changes| disease)?", "bullous disease"),
    _whole("chronic obstructive pulmonary disease", "copd",
           "(?:chronic )?obstructive (?:pulmonary|lung|airways?) disease"),
    _whole("hyperinflation", "hyper-?inflat(?:ed|ion)", "hyper-?expan(?:ded|sion)", "hyperaerat(?:ed|ion)",
           r"flatten(?:ed|ing)(?: of)?(?: the)?(?: \w+){0,2} (?:hemi)?diaphragms?",
           r"(?:hemi)?diaphragms? (?:\w+ ){0,2}flattened", "hyperlucen(?:t|cy) lungs"),
    _whole("low lung volume", "low lung volumes?", r"lung volumes(?: \w+){0,2} (?:low(?! normal)|decreased|reduced)",
           "(?:decreased|diminished|reduced|small) lung volumes?", "hypo-?inflat(?:ed|ion)",
           "hypoventilat(?:ed|ion|ory)",
           "(?:shallow|poor|low) inspirat(?:ion|ory effort)"),
    _here("fibrosis", "(?:pulmonary )?fibrosis", "fibrotic(?: change| changes| disease)?"),
    _here("scarring", "(?:parenchymal |pleuroparenchymal )?scar(?:s|ring)?"),
    _here("bronchiectasis", "bronchiectasis", "bronchiectatic changes?"),
    _here("bronchial wall thickening", "(?:peri)?bronchial (?:wall )?(?:thickening|cuffing)", "airway thickening"),
    _here("cavitation", "cavit(?:y|ies|ation|ary lesions?|ary disease)"),
    _whole("tuberculosis", "tuberculosis", "tb"),
    _here("contusion", "(?:pulmonary )?contusions?"),
    # Bones, abdomen, soft tissue
    _here("rib fracture", "ribs? fractures?",
           r"fractures?(?: (?:is|are))?(?: seen| noted| identified)? (?:of|involving|in) (?:the )?(?:\w+ ){0,5}ribs?",
          r"fractured (?:\w+ ){0,2}ribs?", "rib deformit(?:y|ies)"),
    _here("clavicle fracture", "clavic(?:le|ular) fractures?", r"fractures? of (?:the )?(?:\w+ ){0,3}clavicles?"),
    _whole("vertebral compression fracture",
           r"(?:vertebral |thoracic |spinal |spine )*compression (?:fractures?|deformit(?:y|ies))",
           r"(?:vertebral|spine|spinal)(?: body)? fractures?", "wedge deformit(?:y|ies)", "vertebral body height loss"),
    _here("fracture", "fractures?"),
    _whole("scoliosis", "(?:dextro|levo)?-?scolio(?:sis|tic)(?: curvature)?", "(?:dextro|levo)curvature"),
    _whole("kyphosis", "(?:hyper)?kypho(?:sis|tic)"),
    _whole("degenerative spine disease", "degenerative (?:changes?|disease|disc disease|endplate changes?|spurring)",
           "degenerative", "spondylo(?:sis|tic changes?)", "osteophytes?", "osteophytosis", "dish"),
    _whole("osteopenia", "osteopeni[ac]", "osteoporo(?:sis|tic)", "demineraliz(?:ed|ation)"),
    _whole("acute bony abnormality", rf"(?:acute )?(?:bony|osseous|skeletal|bone) (?:\w+ )?{_DISORDER}",
           rf"{_DISORDER} of (?:the )?(?:bones|skeleton)"),
    _whole("hiatal hernia", "hiatal hernias?", "hiatus hernias?"),
    _here("diaphragmatic hernia", "diaphragmatic hernias?"),
    _here("elevated hemidiaphragm", r"elevat(?:ed|ion)(?: of)?(?: the)?(?: \w+){0,2} (?:hemi)?diaphragms?",
          r"(?:hemi)?diaphragms?(?: \w+){0,2} elevated", r"eventration(?: of)?(?: the)?(?: \w+)? (?:hemi)?diaphragm"),
    _whole("free intraperitoneal air", r"free (?:\w+ )?air", "pneumoperitoneum"),
    _here("subcutaneous emphysema", "subcutaneous (?:emphysema|air|gas)", "soft tissue (?:emphysema|gas|air)"),
    _here("soft tissue swelling", "soft tissue (?:swelling|edema)"),
    _here("calcification", "calcifications?"),
    # Devices
    _whole("support device", "support (?:devices?|apparatus|lines?)", "monitoring (?:devices?|and support devices?)",
           "lines (?:and|or) tubes", "medical devices?"),
    _device("endotracheal tube", "endotracheal tube", "et tube", "ett"),
    _device("enteric tube", "(?:naso|oro|naso-|oro-)?gastric tube", "enteric tube", "ng tube", "og tube",
           "feeding tube",
           "dobb-?hoff(?: tube)?"),
    _device("tracheostomy tube", "tracheostomy(?: tube)?"),
    _device("chest tube", "chest tubes?", "thoracostomy tubes?", "pleural (?:drain|tube|catheter)s?",
           "pigtail catheters?", located=True),
    _device("central venous catheter", "central (?:venous )?(?:catheters?|lines?)", "picc(?: line)?", "port-?a-?cath",
          r"(?:subclavian|jugular|ij|chest wall|dialysis) (?:\w+ )?(?:catheters?|lines?)", "medi-?port",
          "(?:chest |infusion )port", "peripherally inserted central catheter", located=True),
    _device("pulmonary artery catheter", "pulmonary art(?:ery|erial) catheter", "swan-?\\s?ganz(?: catheter)?"),
    _device("catheter", "catheters?", located=True),
    _device("pacemaker", "pacemakers?(?: leads?| generator)?", "pacers?(?: leads?)?", "pacing (?:leads?|device|wires?)",
          "a?icd", "cardiac (?:pacing )?device", "defibrillators?", located=True),
    _whole("sternotomy wire", r"(?:median |prior |intact )*sternotomy(?: wires?| sutures?| changes)?",
           "sternal wires?"),
    _whole("surgical clip", "surgical clips?", "(?:cholecystectomy |vascular |mediastinal )?clips"),
    _whole("prosthetic heart valve", r"(?:prosthetic|artificial|mechanical)(?: \w+){0,2} valves?",
           r"(?:aortic |mitral |cardiac )?valve (?:replacement|prosthes\w+)"),
    _whole("spinal hardware", "(?:spinal|spine|orthopedic|fixation|surgical) (?:fusion )?(?:hardware|rods?)",
           "spinal fusion"),
    # The whole film
    _whole("acute cardiopulmonary abnormality",
           rf"(?:acute |active |significant )*{_CHEST}(?:(?: or |/){_CHEST})? {_DISORDER}",
           rf"(?:acute|active) (?:{_DISORDER}|infiltrative process|infectious process)",
           rf"(?:acute|active) {_CHEST}(?:,? (?:or |and )?{_CHEST})* {_DISORDER}"),
)  # fmt: skip
"""Every finding that can be extracted."""

BY_NAME: dict[str, Finding] = {finding.name: finding for finding in FINDINGS}

_PHRASES = sorted(
    (
        (phrase, index)
        for index, finding in enumerate(FINDINGS)
        for phrase in (re.escape(finding.name), *finding.phrases)
    ),
    # A longer phrase is a more specific one: "calcified granuloma" is tried before "granuloma".
    key=lambda pair: (-len(pair[0]), pair[1]),
)
_GROUPED = "|".join(f"(?P<p{n}>{phrase})" for n, (phrase, _) in enumerate(_PHRASES))
_PATTERN = re.compile(rf"(?<![\w-])(?:{_GROUPED})(?![\w-])")


@dataclass(frozen=True)
class Mention:
    """A finding named in a text, from ``start`` to ``end``."""

    finding: Finding
    start: int
    end: int


def find_mentions(text: str) -> list[Mention]:
    """The findings that lower-case ``text`` names, in order, without overlap."""
    mentions = []
    for match in _PATTERN.finditer(text):
        assert match.lastgroup is not None
        index = _PHRASES[int(match.lastgroup[1:])][1]
        mentions.append(Mention(FINDINGS[index], match.start(), match.end()))
    return mentions
