//! PageTransform transforms of the plane, as content streams have them.

/// `x' = a x + c y + e`, `y' = b x + d y + f`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PageTransform(pub [f64; 6]);

impl PageTransform {
    pub const IDENTITY: PageTransform = PageTransform([1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);

    pub fn translation(x: f64, y: f64) -> PageTransform {
        PageTransform([1.0, 0.0, 0.0, 1.0, x, y])
    }

    /// The transform that applies `self` first and then `next`.
    pub fn then(self, next: PageTransform) -> PageTransform {
        let (a, b) = (self.0, next.0);
        PageTransform([
            a[0] * b[0] + a[1] * b[2],
            a[0] * b[1] + a[1] * b[3],
            a[2] * b[0] + a[3] * b[2],
            a[2] * b[1] + a[3] * b[3],
            a[4] * b[0] + a[5] * b[2] + b[4],
            a[4] * b[1] + a[5] * b[3] + b[5],
        ])
    }

    pub fn apply(self, (x, y): (f64, f64)) -> (f64, f64) {
        let [a, b, c, d, e, f] = self.0;
        (a * x + c * y + e, b * x + d * y + f)
    }

    /// The image of a direction.
    pub fn direction(self, (x, y): (f64, f64)) -> (f64, f64) {
        let [a, b, c, d, ..] = self.0;
        (a * x + c * y, b * x + d * y)
    }
}
