//! Solves the allocation: one choice per tensor, so that the sum of the losses is least and the sum of the sizes at most a budget.
//!
//! Upgrades along each tensor's convex hull are applied in the order of loss per byte, which is optimal up to the last one (the
//! Lagrangian relaxation); then single changes and exchanges between two tensors fill the rest. The result depends on the input
//! alone.

/// One way to store a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StorageChoice {
    /// Bytes in the file, padding included.
    pub bytes: u64,
    /// Expected loss; the losses of all tensors add up.
    pub loss: f64,
}

/// Smallest gain of a change, as a part of the total loss: below it rounding could repeat changes without end.
const LEAST_GAIN: f64 = 1e-12;

/// The least bytes that any solution has. Each item has at least one choice.
pub fn least_bytes(items: &[Vec<StorageChoice>]) -> u64 {
    items.iter().map(|choices| choices.iter().map(|c| c.bytes).min().unwrap_or(0)).sum()
}

/// Returns the index of each item's choice; None if no solution fits the budget.
pub fn solve(items: &[Vec<StorageChoice>], budget: u64) -> Option<Vec<usize>> {
    let smallest = |choices: &Vec<StorageChoice>| {
        let better = |a: &usize, b: &usize| {
            let (a, b) = (choices[*a], choices[*b]);
            a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss))
        };
        (0..choices.len()).min_by(better).unwrap_or(0)
    };
    let mut chosen: Vec<usize> = items.iter().map(smallest).collect();
    let mut bytes: u64 = items.iter().zip(&chosen).map(|(choices, i)| choices[*i].bytes).sum();
    if bytes > budget {
        return None;
    }
    let mut upgrades: Vec<Upgrade> =
        items.iter().enumerate().flat_map(|(item, choices)| hull(item, choices, chosen[item])).collect();
    upgrades.sort_by(|a, b| b.gain_per_byte.total_cmp(&a.gain_per_byte).then(a.item.cmp(&b.item)));
    for Upgrade { item, from, to, .. } in upgrades {
        let more = items[item][to].bytes - items[item][from].bytes;
        if chosen[item] == from && bytes + more <= budget {
            chosen[item] = to;
            bytes += more;
        }
    }
    exchange(items, budget, &mut chosen);
    Some(chosen)
}

/// A step from one choice of an item to the next finer one on its convex hull.
struct Upgrade {
    item: usize,
    from: usize,
    to: usize,
    gain_per_byte: f64,
}

/// The steps along the lower convex hull of loss over bytes, from the smallest choice on.
fn hull(item: usize, choices: &[StorageChoice], smallest: usize) -> Vec<Upgrade> {
    let (mut steps, mut from) = (Vec::new(), smallest);
    loop {
        let here = choices[from];
        let slope = |c: &StorageChoice| (here.loss - c.loss) / (c.bytes - here.bytes) as f64;
        let finer =
            (0..choices.len()).filter(|i| choices[*i].bytes > here.bytes && choices[*i].loss < here.loss);
        let best = finer.max_by(|a, b| {
            let (x, y) = (&choices[*a], &choices[*b]);
            slope(x).total_cmp(&slope(y)).then(x.bytes.cmp(&y.bytes))
        });
        let Some(to) = best else { return steps };
        steps.push(Upgrade { item, from, to, gain_per_byte: slope(&choices[to]) });
        from = to;
    }
}

/// Applies the best change of one item, or exchange between two, until none gains anything.
fn exchange(items: &[Vec<StorageChoice>], budget: u64, chosen: &mut [usize]) {
    let total = |chosen: &[usize]| -> (u64, f64) {
        items.iter().zip(chosen).fold((0, 0.0), |(bytes, loss), (choices, i)| {
            (bytes + choices[*i].bytes, loss + choices[*i].loss)
        })
    };
    loop {
        let (bytes, loss) = total(chosen);
        // Every change of an item as (bytes more, loss less), for all items.
        let moves: Vec<Vec<(i64, f64, usize)>> = items
            .iter()
            .zip(&*chosen)
            .map(|(choices, now)| {
                let here = choices[*now];
                let others = (0..choices.len()).filter(|i| i != now);
                let change =
                    |i: usize| (choices[i].bytes as i64 - here.bytes as i64, here.loss - choices[i].loss, i);
                others.map(change).collect()
            })
            .collect();
        let room = (budget - bytes) as i64;
        let mut best = (loss.abs() * LEAST_GAIN, None);
        for (a, moves_a) in moves.iter().enumerate() {
            for (more_a, gain_a, to_a) in moves_a {
                if *more_a <= room && *gain_a > best.0 {
                    best = (*gain_a, Some([(a, *to_a), (a, *to_a)]));
                }
                if *gain_a <= best.0 {
                    continue;
                }
                // A gain in `a` that is paid for by a loss in `b`.
                for (b, moves_b) in moves.iter().enumerate().filter(|(b, _)| *b != a) {
                    for (more_b, gain_b, to_b) in moves_b {
                        if more_a + more_b <= room && gain_a + gain_b > best.0 {
                            best = (gain_a + gain_b, Some([(a, *to_a), (b, *to_b)]));
                        }
                    }
                }
            }
        }
        let Some(changes) = best.1 else { return };
        changes.into_iter().for_each(|(item, to)| chosen[item] = to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(bytes: u64, loss: f64) -> StorageChoice {
        StorageChoice { bytes, loss }
    }

    /// The least loss of all combinations within the budget.
    fn exhaustive(items: &[Vec<StorageChoice>], budget: u64) -> f64 {
        let Some((first, rest)) = items.split_first() else { return 0.0 };
        let fits = first.iter().filter(|c| c.bytes <= budget);
        fits.map(|c| c.loss + exhaustive(rest, budget - c.bytes)).fold(f64::INFINITY, f64::min)
    }

    fn loss(items: &[Vec<StorageChoice>], chosen: &[usize]) -> f64 {
        items.iter().zip(chosen).map(|(choices, i)| choices[*i].loss).sum()
    }

    #[test]
    fn a_budget_below_the_least_has_no_solution() {
        let items = [vec![choice(10, 2.0), choice(4, 5.0)], vec![choice(3, 1.0)]];
        assert_eq!(least_bytes(&items), 7);
        assert_eq!(solve(&items, 6), None);
        assert_eq!(solve(&items, 7), Some(vec![1, 0]));
        assert_eq!(solve(&items, 13), Some(vec![0, 0]));
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        // The first item gains 1 for 10 bytes, the second 5 for 10.
        let items = [vec![choice(10, 2.0), choice(20, 1.0)], vec![choice(10, 6.0), choice(20, 1.0)]];
        assert_eq!(solve(&items, 30), Some(vec![0, 1]));
    }

    #[test]
    fn an_exchange_finds_what_the_hull_skips() {
        // The best step, 9 bytes of the first item, leaves no room for the second, which gains more in total.
        let items = [vec![choice(0, 3.0), choice(9, 0.0)], vec![choice(0, 3.2), choice(10, 0.0)]];
        assert_eq!(solve(&items, 10), Some(vec![0, 1]));
    }

    /// Random items whose loss falls with the bytes, as that of formats does.
    fn random_items(state: &mut u64) -> Vec<Vec<StorageChoice>> {
        let mut random = || {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*state >> 33) as f64 / f64::from(1u32 << 31)
        };
        (0..6)
            .map(|_| {
                let (size, scale) = (1.0 + 20.0 * random(), random());
                (2..8)
                    .map(|bits| {
                        let loss = scale * 4.0f64.powi(-bits) * (0.7 + 0.6 * random());
                        choice((size * f64::from(bits)) as u64 + 1, loss)
                    })
                    .collect()
            })
            .collect()
    }

    #[test]
    fn solutions_fit_and_are_near_the_optimum() {
        let (mut state, mut ratio, mut exact) = (1, 0.0, 0);
        for case in 0..200u64 {
            let items = random_items(&mut state);
            let least = least_bytes(&items);
            let budget = least + least * (case % 20) / 10;
            let chosen = solve(&items, budget).unwrap();
            let bytes: u64 = items.iter().zip(&chosen).map(|(choices, i)| choices[*i].bytes).sum();
            assert!(bytes <= budget, "case {case}: {bytes} of {budget}");
            assert_eq!(solve(&items, budget), Some(chosen.clone()), "the same again");
            let (found, best) = (loss(&items, &chosen), exhaustive(&items, budget));
            ratio += found / best / 200.0;
            exact += u32::from(found <= best * (1.0 + 1e-9));
        }
        assert!(ratio < 1.02 && exact >= 150, "mean ratio {ratio}, {exact} of 200 optimal");
    }
}
