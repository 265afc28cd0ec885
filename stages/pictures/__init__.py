"""Pictures of training, registration, generated data and results, as PNG files. Each module draws one page.

Volumes have shape (D, H, W). Along D, later slices lie nearer to the head; along H, nearer to the back.
Label maps hold class indices, `structures` the names of the classes from 1. Spacings are in mm along (D, H, W).
"""

from stages.parts.colors import class_color
from stages.pictures.comparison import structures_by_method
from stages.pictures.couples import couples_page
from stages.pictures.degrees import degrees_page
from stages.pictures.losses import loss_curves
from stages.pictures.next_scans import next_scans_page
from stages.pictures.outliers import outliers_page
from stages.pictures.overlay import overlay_page
from stages.pictures.panels import panels_page
from stages.pictures.points import points_plot
from stages.pictures.predictions import best_median_worst, predictions_page
from stages.pictures.registration import registration_overlay
from stages.pictures.rounds import rounds_page
from stages.pictures.scores import score_boxes
from stages.pictures.side_by_side import side_by_side_page
from stages.pictures.suggestion import suggestion_page
from stages.pictures.sweep import Curve, sweep_page

__all__ = [
    "Curve",
    "best_median_worst",
    "class_color",
    "couples_page",
    "degrees_page",
    "loss_curves",
    "next_scans_page",
    "outliers_page",
    "overlay_page",
    "panels_page",
    "points_plot",
    "predictions_page",
    "registration_overlay",
    "rounds_page",
    "score_boxes",
    "side_by_side_page",
    "structures_by_method",
    "suggestion_page",
    "sweep_page",
]
