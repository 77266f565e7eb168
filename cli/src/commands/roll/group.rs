//! The search for few groups of nodes that can be down together: each is as large as it gets, since a group that nothing
//! can join any more wastes the least. What can be down together is the cloud's own plan of a drain to say, so nothing
//! of policies, failures and room is known here. Deliberately absent: an order of groups in which VMs stay away; each
//! group gets back what it had, so each begins with the cluster as it is.

use anyhow::Result;

/// Nodes of one group at most: as many as one request may drain.
const AT_ONCE: usize = 60;
/// Plans that are asked for to make one group larger. Each costs the leader a second at a thousand nodes.
const PLANS: usize = 32;

/// Nodes that can be down together, with the plan that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group<P> {
    pub nodes: Vec<String>,
    pub plan: P,
}

/// A group of these nodes that none of the others can join, as far as this many plans show; none when not one of them
/// can be down at all. `plan` answers for nodes that can be down together. What cannot join a group cannot join a larger
/// one, so parts of the order are tried whole and halved where they do not go.
pub async fn largest<P>(
    order: &[String],
    plan: &impl AsyncFn(&[String]) -> Result<Option<P>>,
) -> Result<Option<Group<P>>> {
    let mut best: Option<Group<P>> = None;
    let (mut parts, mut plans) = (vec![order], 0);
    while let Some(part) = parts.pop() {
        let there = best.as_ref().map_or(0, |group| group.nodes.len());
        // Until there is one at all, each is asked for.
        if part.is_empty() || there == AT_ONCE || (best.is_some() && plans >= PLANS) {
            continue;
        }
        let (part, beyond) = part.split_at(part.len().min(AT_ONCE - there));
        parts.push(beyond);
        let joined = best.iter().flat_map(|group| &group.nodes).chain(part);
        let nodes: Vec<String> = joined.cloned().collect();
        plans += 1;
        match plan(&nodes).await? {
            Some(plan) => best = Some(Group { nodes, plan }),
            None if part.len() > 1 => {
                let (first, second) = part.split_at(part.len().div_ceil(2));
                parts.extend([second, first]);
            }
            None => {}
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|at| format!("n{at}")).collect()
    }

    /// All groups, with how many plans they took, of nodes that hold so much and of which some may be down that hold no
    /// more than `room` together.
    async fn groups(loads: &[u64], room: u64) -> (Vec<Vec<String>>, usize) {
        let asked = Cell::new(0);
        let load = |name: &String| loads[name[1..].parse::<usize>().unwrap()];
        let plan = async |nodes: &[String]| {
            asked.set(asked.get() + 1);
            Ok((nodes.iter().map(load).sum::<u64>() <= room).then_some(()))
        };
        let mut rest = names(loads.len());
        rest.sort_by_key(|name| std::cmp::Reverse(load(name)));
        let mut groups = Vec::new();
        while let Some(group) = largest(&rest, &plan).await.unwrap() {
            rest.retain(|name| !group.nodes.contains(name));
            groups.push(group.nodes);
        }
        (groups, asked.get())
    }

    #[tokio::test]
    async fn small_nodes_fill_the_groups_of_large_ones() {
        // 30 in groups of 10: three are the fewest.
        let (found, _) = groups(&[7, 3, 6, 4, 5, 5], 10).await;
        assert_eq!(found, [["n0", "n1"], ["n2", "n3"], ["n4", "n5"]]);
    }

    #[tokio::test]
    async fn a_node_that_cannot_go_holds_no_other_up_and_stays() {
        let (found, _) = groups(&[1, 99, 1, 1], 10).await;
        assert_eq!(found, [["n0", "n2", "n3"]]);
        assert!(groups(&[99, 99], 10).await.0.is_empty());
    }

    #[tokio::test]
    async fn a_hundred_nodes_take_few_plans() {
        let (found, asked) = groups(&[1; 100], 25).await;
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [25; 4]);
        assert!(asked < 4 * PLANS, "{asked}");
        let (found, _) = groups(&[0; 100], 0).await;
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [60, 40]);
    }
}
