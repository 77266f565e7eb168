//! What one history is made of: a seed leaves out some faults and some work, does others much more often, and strikes one
//! node more than the others, so that what needs several of a kind in a row is met in some histories instead of hardly
//! ever in all of them (Groce, Zhang, Eide, Chen and Regehr, Swarm Testing, 2012).

use crate::chance::Chance;
use crate::faults::{STRIKES, Strike};
use crate::work::{ASKS, Ask};

/// See the module.
pub struct Swarm {
    pub strikes: Vec<(Strike, u64)>,
    pub asks: Vec<(Ask, u64)>,
    /// The node that every second fault is about; old hardware has one.
    pub weak: Option<usize>,
}

impl Swarm {
    pub fn draw(chance: &mut Chance) -> Self {
        let plain = chance.one_in(4);
        let strikes = STRIKES.map(|(strike, weight)| (strike, weight * factor(chance, plain)));
        let asks = ASKS.map(|(ask, weight)| (ask, weight * factor(chance, plain)));
        let weak = (!plain && chance.one_in(2)).then(|| chance.index(8));
        Self { strikes: strikes.into(), asks: asks.into(), weak }
    }
}

fn factor(chance: &mut Chance, plain: bool) -> u64 {
    let drawn = [0, 1, 1, 2, 8][chance.index(5)];
    if plain { 1 } else { drawn }
}
