//! Kinds of plans in the picture, and their markers.

/// Kind of a plan; decides the colour and shape of its marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PointKind {
    /// One whole network of the pool.
    Anchor,
    /// Parts of several networks, joined by stitches trained with them.
    Stitched,
    /// Parts of several networks, joined by stitches fitted in closed form.
    Fitted,
    /// Parts of several networks, joined by a small trained network.
    Bridged,
    /// A network with a prefix of its heads and hidden units.
    Narrowed,
    /// A network's first blocks with its own norm and head.
    Shortened,
    /// A network with blocks left out.
    Dropped,
    /// A network whose tokens are merged on the way.
    Merged,
    /// A network left early through an exit head.
    Exit,
    /// A network in lower precision.
    Quantized,
    /// Several of the other kinds at once.
    Mixed,
}

impl PointKind {
    /// All kinds, in the order of the legend.
    pub(crate) const ALL: [Self; 11] = [
        Self::Anchor,
        Self::Stitched,
        Self::Fitted,
        Self::Bridged,
        Self::Narrowed,
        Self::Shortened,
        Self::Dropped,
        Self::Merged,
        Self::Exit,
        Self::Quantized,
        Self::Mixed,
    ];

    /// Returns the kind's name in the legend.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Anchor => "anchor",
            Self::Stitched => "stitched",
            Self::Fitted => "least squares",
            Self::Bridged => "bridged",
            Self::Narrowed => "narrowed",
            Self::Shortened => "shortened",
            Self::Dropped => "dropped",
            Self::Merged => "merged tokens",
            Self::Exit => "exit",
            Self::Quantized => "quantized",
            Self::Mixed => "mixed",
        }
    }

    /// Returns a colour that stands out on light and on dark paper (Okabe and Ito, slightly toned).
    pub(crate) fn colour(self) -> &'static str {
        match self {
            Self::Anchor => "#d55e00",
            Self::Stitched => "#0f7fc4",
            Self::Fitted => "#56b4e9",
            Self::Bridged => "#c2699f",
            Self::Narrowed => "#a0522d",
            Self::Shortened => "#5b8c00",
            Self::Dropped => "#12956f",
            Self::Merged => "#3f8c8c",
            Self::Exit => "#c98a00",
            Self::Quantized => "#7a68c8",
            Self::Mixed => "#7f868d",
        }
    }

    /// Returns the outline of the marker around the origin, as SVG path data.
    pub(crate) fn outline(self) -> &'static str {
        match self {
            Self::Anchor => {
                "M0-7 1.7-2.3 6.7-2.2 2.7.9 4.1 5.7 0 2.9-4.1 5.7-2.7.9-6.7-2.2-1.7-2.3Z"
            }
            Self::Stitched => "M-4.5 0A4.5 4.5 0 1 1 4.5 0 4.5 4.5 0 1 1-4.5 0Z",
            Self::Fitted => "M-5 0A5 3 0 1 1 5 0 5 3 0 1 1-5 0Z",
            Self::Bridged => "M-4-4H4V4H-4Z",
            Self::Narrowed => "M-2-6H2V6H-2Z",
            Self::Shortened => "M-6-2H6V2H-6Z",
            Self::Dropped => "M-5-4H5L0 5Z",
            Self::Merged => "M-5 0-2.5-4.5H2.5L5 0 2.5 4.5H-2.5Z",
            Self::Exit => "M0-5 5 4H-5Z",
            Self::Quantized => "M0-5.5 5.5 0 0 5.5-5.5 0Z",
            Self::Mixed => "M-1.7-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z",
        }
    }
}
