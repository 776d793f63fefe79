"""Phrase bank of the report writer.

Templates take {side}, {Side}, {site}, {zone}, {size} (mm), {size_cm}, {degree} and {rib}. Everything that a training or
validation report can draw from here is free of the never-seen findings; what names them is kept apart.
"""

from __future__ import annotations

PRESENT: dict[str, tuple[str, ...]] = {
    "cardiomegaly": (
        "There is {degree} cardiomegaly.",
        "The cardiac silhouette is {degree}ly enlarged.",
        "Enlarged cardiac silhouette, {degree}.",
        "The heart is enlarged.",
        "{Degree} enlargement of the heart is noted.",
    ),
    "pleural effusion": (
        "There is a {volume} {side} pleural effusion.",
        "{Volume} {side} pleural effusion is present.",
        "Blunting of the {side} costophrenic angle is consistent with a {volume} effusion.",
        "A {volume} amount of pleural fluid is seen on the {side}.",
        "{Volume} {side} effusion with layering fluid at the base.",
    ),
    "bilateral effusion": (
        "There are {volume} bilateral pleural effusions.",
        "{Volume} bilateral effusions.",
        "Both costophrenic angles are blunted by {volume} pleural effusions.",
    ),
    "pneumothorax": (
        "There is a {volume} {side} pneumothorax.",
        "{Volume} {side} apical pneumothorax with a visible pleural line.",
        "A {side} pneumothorax is identified, {volume} in size.",
        "A visceral pleural line is seen at the {side} apex, consistent with a {volume} pneumothorax.",
    ),
    "consolidation": (
        "There is consolidation in the {side} {zone}.",
        "{Side} {zone} consolidation, {degree}, concerning for pneumonia.",
        "Dense airspace consolidation is seen in the {side} {zone}.",
        "Confluent consolidative opacity in the {side} {zone}.",
    ),
    "atelectasis": (
        "There is {degree} atelectasis in the {side} {zone}.",
        "Linear opacity in the {side} {zone} is compatible with atelectasis.",
        "Plate-like atelectasis is seen in the {side} {zone}.",
        "Band-like airspace opacity in the {side} {zone} with volume loss, compatible with atelectasis.",
        "{Side} {zone} subsegmental atelectasis.",
    ),
    "pulmonary edema": (
        "There is {degree} pulmonary edema.",
        "{Degree} pulmonary vascular congestion with interstitial edema.",
        "Bilateral perihilar haze and septal lines are consistent with {degree} pulmonary edema.",
        "Diffuse bilateral perihilar airspace opacities compatible with {degree} edema.",
        "Indistinct pulmonary vasculature and Kerley B lines in keeping with {degree} edema.",
    ),
    "lung nodule": (
        "There is a {size} mm nodule in the {side} {zone}.",
        "A rounded {size_cm} cm pulmonary nodule projects over the {side} {zone}.",
        "{Side} {zone} nodule measuring {size} mm.",
        "A well-circumscribed nodular opacity of {size} mm is seen in the {side} {zone}.",
    ),
    "lung mass": (
        "There is a {size_cm} cm mass in the {side} {zone}.",
        "A large {side} {zone} mass measures {size_cm} cm.",
        "A spiculated mass of {size_cm} cm in the {side} {zone} is concerning for malignancy.",
        "A mass-like lesion is seen in the {side} {zone}.",
    ),
    "emphysema": (
        "The lungs are hyperinflated with flattened diaphragms, consistent with emphysema.",
        "There is {degree} emphysema.",
        "Emphysematous changes with hyperlucent lungs.",
        "{Degree} hyperinflation and flattening of the hemidiaphragms suggest emphysema.",
    ),
    "rib fracture": (
        "There is a fracture of the {side} {rib} rib.",
        "{Degree}ly displaced {side} {rib} rib fracture.",
        "A displaced fracture is seen in the posterior {side} {rib} rib.",
        "Cortical step-off of the {side} {rib} rib with callus, in keeping with a fracture.",
    ),
    "rib fractures": (
        "There are fractures of the {side} {rib} ribs.",
        "{Degree}ly displaced {side} {rib} rib fractures.",
        "Displaced fractures are seen in the posterior {side} {rib} ribs.",
        "Cortical step-off of the {side} {rib} ribs with callus, in keeping with fractures.",
    ),
    "calcified granuloma": (
        "There is a calcified granuloma in the {side} {zone}.",
        "A dense {size} mm calcified nodule in the {side} {zone} is consistent with a granuloma.",
        "Calcified granuloma projects over the {side} {zone}.",
    ),
    "hiatal hernia": (
        "There is a {volume} hiatal hernia.",
        "A retrocardiac opacity with an air-fluid level is consistent with a {volume} hiatal hernia.",
        "{Volume} hiatus hernia is noted behind the heart.",
        "Rounded retrocardiac density containing gas, compatible with a hiatal hernia.",
    ),
    "central venous catheter": (
        "A {side} central venous catheter terminates in the superior vena cava.",
        "{Side} internal jugular line with tip projecting over the SVC.",
        "Central venous line from the {side} is in standard position.",
    ),
    "pacemaker": (
        "A left chest wall pacemaker is in place with its lead in the right ventricle.",
        "Left-sided pacer with intact lead.",
        "A cardiac device projects over the left chest with lead tip over the right ventricle.",
    ),
    "endotracheal tube": (
        "An endotracheal tube terminates above the carina.",
        "ET tube is in standard position with its tip above the carina.",
        "The patient is intubated; the endotracheal tube tip projects over the mid trachea.",
    ),
}

UNCERTAIN: tuple[str, ...] = (
    "Possible {phrase}.",
    "Findings may represent {phrase}.",
    "{Phrase} cannot be excluded.",
    "Questionable {phrase}.",
    "There is suspicion of {phrase}.",
)

PHRASE: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("cardiomegaly", "enlarged cardiac silhouette"),
    "pleural effusion": ("{side} pleural effusion",),
    "pneumothorax": ("{side} pneumothorax",),
    "consolidation": ("consolidation in the {side} {zone}", "{side} {zone} consolidation"),
    "atelectasis": ("atelectasis in the {side} {zone}", "{side} {zone} atelectasis"),
    "pulmonary edema": ("pulmonary edema",),
    "lung nodule": ("nodule in the {side} {zone}", "{side} {zone} lung nodule"),
    "lung mass": ("mass in the {side} {zone}", "{side} {zone} lung mass"),
    "emphysema": ("emphysema",),
    "rib fracture": ("{side} {rib} rib fracture", "fracture of the {side} {rib} rib"),
    "rib fractures": ("{side} {rib} rib fractures", "fractures of the {side} {rib} ribs"),
    "calcified granuloma": ("calcified granuloma in the {side} {zone}", "{side} {zone} calcified granuloma"),
    "hiatal hernia": ("hiatal hernia",),
    "central venous catheter": ("{side} central venous catheter",),
    "pacemaker": ("pacemaker",),
    "endotracheal tube": ("endotracheal tube",),
}
"""Short noun phrases: for impressions, uncertain statements and the phrases of regions."""

ABSENT: dict[str, tuple[str, ...]] = {
    "cardiomegaly": (
        "The heart size is normal.",
        "Cardiac silhouette is within normal limits.",
        "The heart is not enlarged.",
        "No cardiomegaly.",
    ),
    "pleural effusion": ("No pleural effusion.", "The costophrenic angles are sharp.", "There is no effusion."),
    "pneumothorax": ("No pneumothorax.", "There is no evidence of pneumothorax.", "No pneumothorax is seen."),
    "consolidation": ("No focal consolidation.", "There is no consolidation to suggest pneumonia."),
    "atelectasis": ("No atelectasis.", "The lungs are well expanded."),
    "pulmonary edema": (
        "No pulmonary edema.",
        "The pulmonary vasculature is normal.",
        "There is no evidence of edema or vascular congestion.",
    ),
    "lung nodule": ("No pulmonary nodule is seen.", "There is no suspicious nodule."),
    "lung mass": ("No pulmonary mass.",),
    "emphysema": ("No hyperinflation.",),
    "rib fracture": (
        "No acute osseous abnormality.",
        "No displaced rib fracture is identified.",
        "The visualized osseous structures are intact.",
    ),
    "calcified granuloma": ("No calcified granuloma.",),
    "hiatal hernia": ("No hiatal hernia.",),
    "support device": ("No support devices are seen.", "No lines or tubes."),
}

JOINT_ABSENT: tuple[str, ...] = (
    "There is no pneumothorax or pleural effusion.",
    "No pleural effusion or pneumothorax.",
    "No effusion or pneumothorax is seen.",
)

CLEAR: tuple[str, ...] = ("The lungs are clear.", "Lungs are clear bilaterally.", "Both lungs are clear.")

BACKGROUND: tuple[str, ...] = (
    "The mediastinal contours are unremarkable.",
    "Mediastinal and hilar contours are normal.",
    "The upper abdomen is unremarkable.",
    "Degenerative changes are present in the thoracic spine.",
    "The trachea is midline.",
    "The aorta is mildly tortuous.",
    "The XXXX are within normal limits.",
)

NORMAL_IMPRESSION: tuple[str, ...] = (
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary process.",
    "Normal chest radiograph.",
    "No evidence of acute cardiopulmonary disease.",
)

INDICATION: tuple[str, ...] = (
    "{age} year old {person} with shortness of breath.",
    "Chest pain.",
    "Cough and fever.",
    "XXXX-year-old {person} with XXXX.",
    "Dyspnea on exertion, evaluate.",
    "Preoperative evaluation.",
    "{age} year old {person}, status post fall.",
    "Evaluate for interval change.",
)

CHANGED: dict[str, tuple[str, ...]] = {
    "new": ("This is new since the prior study.", "New compared to the prior examination."),
    "unchanged": (
        "This is unchanged.",
        "This is stable compared to prior.",
        "No significant interval change in the {phrase}.",
    ),
    "improved": ("This has decreased since the prior study.", "Interval improvement of the {phrase}."),
    "worsened": ("This has increased since the prior study.", "Interval worsening of the {phrase}."),
}

RESOLVED: tuple[str, ...] = (
    "Previously seen {phrase} has resolved.",
    "Interval resolution of the {phrase}.",
    "The {phrase} seen on the prior study is no longer present.",
)

VOLUME = {"mild": "small", "moderate": "moderate", "severe": "large"}
ZONE = {"upper": "upper lung", "mid": "mid lung", "lower": "lower lung"}
LOBE = {("right", "upper"): "upper lobe", ("right", "mid"): "middle lobe", ("right", "lower"): "lower lobe",
        ("left", "upper"): "upper lobe", ("left", "mid"): "lingula", ("left", "lower"): "lower lobe"}  # fmt: skip
ORDINAL = {5: "fifth", 6: "sixth", 7: "seventh", 8: "eighth"}
