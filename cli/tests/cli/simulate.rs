//! What-ifs on small cluster files: the engine's answers as people and as programs see them. The arithmetic is the
//! engine's and is tested there; here it is the words, the pictures and the exit codes.

use insta::assert_snapshot;

use crate::fake::*;
use crate::run::Tamdao;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/");

/// Four nodes in two racks, one cordoned; two of three that wait find a place.
fn four_nodes() -> Tamdao {
    let tamdao = Tamdao::new(&[]);
    tamdao.file("c", &std::fs::read(format!("{EXAMPLES}four-nodes.cluster")).unwrap());
    tamdao
}

#[tokio::test]
async fn place_says_where_and_why_and_why_not() {
    let tamdao = four_nodes();
    assert_snapshot!(tamdao.story("simulate place --cluster c").await, @r#"
    exit code: 1
    ----- stdout -----
    VM      VCPUS  MEMORY    NODE  SCORE   WHY
    web3    2      4.1 GiB   n3    589076  tight 53, even 49, in-use 100, held 14, support 100, apart 100, together 100
    web4    2      4.1 GiB   none  -       no place on any of 4 nodes: 1 cordoned (n4); 3 too many members of its group (nearest n1: already 1 of group web on it, 1 allowed)
    report  4      16.1 GiB  n1    592230  tight 80, even 43, in-use 100, held 25, support 100, apart 100, together 100

    Why web4 has no place
      NODE        SAYS
      n4          cordoned
      n1          already 1 of group web on it, 1 allowed
      n2          already 1 of group web on it, 1 allowed
      n3          already 1 of group web on it, 1 allowed
      would help  uncordon n4
      would help  relax the rule by node of group web, or move a member

    Nodes before and after (# stays, + comes, - goes, . is free)
      NODE       CPU                                MEMORY                             VMS
      n1         [###########++.......]  56 > 68 %  [###########+++++....]  58 > 83 %  2 > 3
      n3         [#####+..............]  25 > 31 %  [##########+.........]  51 > 58 %  1 > 2
      all nodes  [#####+..............]  28 > 32 %  [########+...........]  41 > 49 %  5 > 7
    ----- stderr -----
    2 nodes stay as they are
    "#);
}

#[tokio::test]
async fn what_is_added_is_one_row_for_each_node() {
    let tamdao = four_nodes();
    let line = "simulate place --cluster c --what-if 'node n4 uncordon' --what-if 'rack r1 down' --what-if 'add 9 s'";
    assert_snapshot!(tamdao.story(line).await, @r#"
    exit code: 1
    ----- stdout -----
    VM      VCPUS  MEMORY    NODE  SCORE   WHY
    db      16     32.2 GiB  n4    543850  tight 50, even 49, in-use 0, held 0, support 100, apart 100, together 100
    web1    2      4.1 GiB   n4    591261  tight 57, even 49, in-use 100, held 14, support 100, apart 100, together 100
    web2    2      4.1 GiB   n3    588261  tight 51, even 49, in-use 100, held 14, support 100, apart 100, together 100
    9 x s   1      2.1 GiB   n4    595085  tight 60, even 49, in-use 100, held 25, support 100, apart 100, together 100
    web3    2      4.1 GiB   none  -       no place on any of 2 nodes: 2 too many members of its group (nearest n3: already 1 of group web on it, 1 allowed)
    web4    2      4.1 GiB   none  -       no place on any of 2 nodes: 2 too many members of its group (nearest n3: already 1 of group web on it, 1 allowed)
    report  4      16.1 GiB  n3    587990  tight 72, even 43, in-use 100, held 25, support 100, apart 100, together 100

    Why web3 has no place
      NODE        SAYS
      n3          already 1 of group web on it, 1 allowed
      n4          already 1 of group web on it, 1 allowed
      would help  relax the rule by node of group web, or move a member

    Why web4 has no place
      NODE        SAYS
      n3          already 1 of group web on it, 1 allowed
      n4          already 1 of group web on it, 1 allowed
      would help  relax the rule by node of group web, or move a member

    Nodes before and after (# stays, + comes, - goes, . is free)
      NODE       CPU                                MEMORY                             VMS
      n1 (down)  [-----------.........]  56 > 0 %   [-----------.........]  58 > 0 %   2 > 0
      n2 (down)  [------..............]  31 > 0 %   [-----------.........]  58 > 0 %   2 > 0
      n3         [#####+++............]  25 > 43 %  [##########++++++....]  51 > 83 %  1 > 3
      n4         [++++++++++++++++....]   0 > 84 %  [+++++++++++++++++...]   0 > 88 %  0 > 11
      all nodes  [###########+........]  56 > 64 %  [################+...]  83 > 86 %  5 > 14
    ----- stderr -----
    what if node n4 uncordon: 1 node uncordoned
    what if rack r1 down: 2 nodes lost; of its protected VMs 3 restarted elsewhere and 0 without a place, 1 not protected
    what if add 9 s: 9 of 9 have a place
    "#);
}

#[tokio::test]
async fn programs_get_all_of_it() {
    let tamdao = four_nodes();
    let output = tamdao.output("simulate place --cluster c -o json").await;
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["placed"][0]["vm"], "web3");
    assert_eq!(report["placed"][0]["node"], "n3");
    assert_eq!(report["placed"][0]["points"]["apart"], 10_000);
    assert_eq!(report["refused"][0]["vm"], "web4");
    assert_eq!(report["refused"][0]["reasons"]["TooCrowded"], 3);
    assert_eq!(report["nodes"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn the_fork_is_a_cluster_again() {
    let tamdao = four_nodes();
    let text = tamdao.output("simulate place --cluster c --what-if 'node n2 down' -o text").await.stdout;
    tamdao.file("d", &text);
    assert!(!String::from_utf8_lossy(&text).contains("node n2"));
    // What found a place holds it now, and what found none asks again.
    let again = tamdao.output("simulate place --cluster d -o text").await.stdout;
    assert_eq!(String::from_utf8_lossy(&again), String::from_utf8_lossy(&text));
}

#[tokio::test]
async fn fit_counts_and_says_what_runs_out() {
    let tamdao = four_nodes();
    assert_snapshot!(tamdao.story("simulate fit --cluster c").await, @r#"
    exit code: 0
    ----- stdout -----
    FLAVOR  VCPUS  MEMORY    FIT  THEN
    s       1      2.1 GiB   38   not enough memory on 3, cordoned on 1 of 4 nodes
    m       2      4.1 GiB   19   not enough memory on 3, cordoned on 1 of 4 nodes
    l       4      16.1 GiB  3    not enough memory on 3, cordoned on 1 of 4 nodes
    "#);
    assert_snapshot!(tamdao.story("simulate fit --cluster c --flavor m --disk fast=200G --guarded node").await, @r#"
    exit code: 1
    ----- stdout -----
    FLAVOR  VCPUS  MEMORY   FIT  THEN                                            GUARDED  THEN
    m       2      4.1 GiB  5    not enough disk on 3, cordoned on 1 of 4 nodes  0        the loss of node n1 is not survived
    ----- stderr -----
    guarded: while any one node may be lost
    "#);
    let line = "simulate fit --cluster c --flavor l --guarded node,rack --what-if 'node n4 uncordon'";
    assert_snapshot!(tamdao.story(line).await, @r#"
    exit code: 0
    ----- stdout -----
    FLAVOR  VCPUS  MEMORY    FIT  THEN                               GUARDED  THEN
    l       4      16.1 GiB  6    not enough memory on 4 of 4 nodes  2        the loss of rack r1 would not be survived
    ----- stderr -----
    what if node n4 uncordon: 1 node uncordoned
    guarded: while any one node or rack may be lost
    "#);
    assert_snapshot!(tamdao.story("simulate fit --cluster c --like db --at-most 1").await, @r#"
    exit code: 1
    ----- stdout -----
    FLAVOR  VCPUS  MEMORY    FIT  THEN
    db      16     32.2 GiB  0    not enough memory on 2, cordoned on 1, not enough vCPUs on 1 of 4 nodes
    "#);
    assert_snapshot!(tamdao.story("simulate fit --cluster c --flavor xxl").await, @r#"
    exit code: 2
    ----- stderr -----
    error: no flavor is named "xxl"; known: s, m, l
    "#);
}

#[tokio::test]
async fn fit_says_what_a_rack_means_and_what_an_agency_has_left() {
    let tamdao = four_nodes();
    assert_snapshot!(tamdao.story("simulate fit --cluster c --by rack --agencies").await, @r#"
    exit code: 0
    ----- stdout -----
    FLAVOR  VCPUS  MEMORY    FIT  THEN
    s       1      2.1 GiB   38   not enough memory on 3, cordoned on 1 of 4 nodes
    m       2      4.1 GiB   19   not enough memory on 3, cordoned on 1 of 4 nodes
    l       4      16.1 GiB  3    not enough memory on 3, cordoned on 1 of 4 nodes

    By failure domain
      WHERE    FLAVOR  FIT-THERE  THEN                                              FIT-WITHOUT  LEFT-OUT
      rack r1  s       24         not enough memory on 2 of 2 nodes                 12           2
      rack r2  s       14         cordoned on 1, not enough memory on 1 of 2 nodes  24           0
      rack r1  m       12         not enough memory on 2 of 2 nodes                 6            2
      rack r2  m       7          cordoned on 1, not enough memory on 1 of 2 nodes  12           0
      rack r1  l       2          not enough memory on 2 of 2 nodes                 1            2
      rack r2  l       1          cordoned on 1, not enough memory on 1 of 2 nodes  2            0

    By agency
      AGENCY    FLAVOR  FIT  THEN
      health    s       12   its quota has 0 vcpus left, 1 needed
      archives  s       0    it is frozen or archived
      health    m       6    its quota has 0 vcpus left, 2 needed
      archives  m       0    it is frozen or archived
      health    l       3    its quota has 0 vcpus left, 4 needed
      archives  l       0    it is frozen or archived
    ----- stderr -----
    fit-without: once it is lost and its protected VMs are restarted elsewhere; left-out have no place
    "#);
    assert_snapshot!(tamdao.story("simulate fit --cluster c --flavor m --disk fast=20G --guarded node --agencies --what-if 'node n4 uncordon'").await, @r#"
    exit code: 0
    ----- stdout -----
    FLAVOR  VCPUS  MEMORY   FIT  THEN                               GUARDED  THEN
    m       2      4.1 GiB  34   not enough memory on 4 of 4 nodes  19       the loss of node n1 would not be survived

    By agency
      AGENCY    FLAVOR  FIT  THEN                                  GUARDED
      health    m       6    its quota has 0 vcpus left, 2 needed  6
      archives  m       0    it is frozen or archived              0
    ----- stderr -----
    what if node n4 uncordon: 1 node uncordoned
    guarded: while any one node may be lost
    "#);
    // What remains without a rack is what fits when it is down.
    let rows = tamdao.json("simulate fit --cluster c --by rack,node --agencies -o json").await;
    let down = tamdao.json("simulate fit --cluster c --what-if 'rack r1 down' -o json").await;
    for (row, down) in rows.as_array().unwrap().iter().zip(down.as_array().unwrap()) {
        assert_eq!(row["domains"].as_array().unwrap().len(), 6);
        assert_eq!(row["domains"][0]["domain"], "rack r1");
        assert_eq!(row["domains"][0]["fit_without"], down["fit"]);
        assert_eq!(row["domains"][0]["left_out"], 2);
        assert_eq!(row["agencies"][1]["fit"], 0);
        assert!(down["domains"].is_null() && down["agencies"].is_null());
    }
    assert_snapshot!(tamdao.story("simulate fit --cluster c --by row").await, @r#"
    exit code: 2
    ----- stderr -----
    error: --by: "row" is no subject; known: node, rack
    "#);
    tamdao.file("e", b"tamdao-cluster 1\nflavor m vcpus=2 memory=4246\n");
    assert_snapshot!(tamdao.story("simulate fit --cluster e --agencies").await, @r#"
    exit code: 2
    ----- stderr -----
    error: the cluster names no agency

    hint: add a line such as: agency health free.vcpus=64
    "#);
}

#[tokio::test]
async fn survive_names_what_is_left_out() {
    let tamdao = four_nodes();
    assert_snapshot!(tamdao.story("simulate survive --cluster c --guarded node,rack").await, @r#"
    exit code: 1
    ----- stdout -----
    LOST     SURVIVED  NODES  PROTECTED  LEFT-OUT  UNPROTECTED  MEMORY-OF-THE-REST
    node n1  no        1      2          1         0            [#######.............]  36 > 38 %
    node n2  yes       1      1          0         1            [#######.............]  36 > 38 %
    node n3  yes       1      0          0         1            [#######.............]  38 %
    node n4  yes       1      0          0         0            [###########.........]  55 %
    rack r1  no        2      3          2         1            [#####...............]  25 > 29 %
    rack r2  yes       2      0          0         1            [###########.........]  58 %

    Left out
      LOST     VM    WHY
      node n1  db    no place on any of 3 nodes: 1 cordoned (n4); 2 not enough memory (nearest n3: needs 33000 MiB of memory, has 31100 MiB free)
      rack r1  db    no place on any of 2 nodes: 1 cordoned (n4); 1 not enough memory (nearest n3: needs 33000 MiB of memory, has 31100 MiB free)
      rack r1  web2  no place on any of 2 nodes: 1 cordoned (n4); 1 too many members of its group (nearest n3: already 1 of group web on it, 1 allowed)

    Restarts
      LOST     ORDER  VM    NODE
      node n1  1      web1  n3
      node n2  1      web2  n3
      rack r1  1      web1  n3
    ----- stderr -----
    memory: # stays, + comes, - goes, . is free
    "#);
    assert_snapshot!(tamdao.story("simulate survive --cluster c --guarded rack --what-if 'node n4 uncordon'").await, @r#"
    exit code: 0
    ----- stdout -----
    LOST     SURVIVED  NODES  PROTECTED  LEFT-OUT  UNPROTECTED  MEMORY-OF-THE-REST
    rack r1  yes       2      3          0         1            [#####++++++.........]  25 > 58 %
    rack r2  yes       2      0          0         1            [###########.........]  58 %

    Restarts
      LOST     ORDER  VM    NODE
      rack r1  1      db    n4
      rack r1  2      web1  n4
      rack r1  3      web2  n3
    ----- stderr -----
    what if node n4 uncordon: 1 node uncordoned
    memory: # stays, + comes, - goes, . is free
    "#);
    let report =
        tamdao.json("simulate survive --cluster c --guarded node --what-if 'node n4 uncordon' -o json").await;
    assert_eq!(report[0]["loss"], "node n1");
    assert_eq!(report[0]["guaranteed"], true);
    assert_eq!(report[0]["plan"][0]["vm"], "db");
}

/// Two racks on two feeds, and three machines of 2013 with one feed each.
fn two_racks() -> Tamdao {
    let tamdao = Tamdao::new(&[]);
    tamdao.file("c", &std::fs::read(format!("{EXAMPLES}two-racks.cluster")).unwrap());
    tamdao
}

#[tokio::test]
async fn old_hardware_is_emptied_round_by_round() {
    let tamdao = two_racks();
    assert_snapshot!(tamdao.story("simulate drain old2 feed=B --cluster c --keep scratch-old2").await, @r#"
    exit code: 1
    ----- stdout -----
    ROUND  VM             FROM  TO    HOW   COPIES    WHY
    1      legacy-old2-1  old2  r1n1  live  16.1 GiB  empties old2
    1      legacy-old2-2  old2  r1n1  live  16.1 GiB  empties old2
    2      legacy-old3-1  old3  r1n1  live  16.1 GiB  empties old3
    2      legacy-old3-2  old3  r1n1  live  16.1 GiB  empties old3
    3      scratch-old3   old3  r1n1  live  43.2 GiB  empties old3

    What stays
      VM            NODE  WHY
      scratch-old2  old2  it must stay where it is

    Nodes before and after (# stays, + comes, - goes, . is free)
      NODE       CPU                                MEMORY                             VMS
      old2       [#--.................]  15 > 3 %   [#----...............]  29 > 3 %   3 > 1
      old3       [---.................]  15 > 0 %   [-----...............]  29 > 0 %   3 > 0
      r1n1       [#####+++............]  29 > 43 %  [###########+++++....]  56 > 83 %  8 > 13
      all nodes  [####................]  20 %       [#######.............]  37 %       54
    ----- stderr -----
    6 nodes stay as they are
    5 moves in 3 rounds, 108 GiB to copy
    "#);
    let plan = tamdao.output("simulate drain old3 --cluster c -o text").await;
    assert_eq!(plan.status.code(), Some(0));
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(plan.starts_with("tamdao-plan 1\nround\nmove "), "{plan}");
    let report = tamdao.json("simulate drain old3 --cluster c --per-node 1 -o json").await;
    assert_eq!(report["done"], true);
    assert_eq!(report["plan"]["moves"], 3);
    assert_eq!(report["plan"]["rounds"].as_array().unwrap().len(), 3);
    assert_snapshot!(tamdao.story("simulate drain old9 --cluster c").await, @r#"
    exit code: 2
    ----- stderr -----
    error: no node is named "old9"; known: r1n1, r1n2, r1n3, r2n1, r2n2, r2n3, old1, old2, old3
    "#);
}

#[tokio::test]
async fn maintain_has_a_line_for_all_that_can_be_switched_off() {
    let tamdao = two_racks();
    assert_snapshot!(tamdao.story("simulate maintain --cluster c").await, @r#"
    exit code: 1
    ----- stdout -----
    EMPTIED    POSSIBLE  NODES  MOVES  ROUNDS  COPIES    MISSING
    node r1n1  yes       1      8      4       141 GiB   -
    node r1n2  yes       1      7      4       76.7 GiB  -
    node r1n3  yes       1      7      4       76.7 GiB  -
    node r2n1  yes       1      8      4       141 GiB   -
    node r2n2  yes       1      7      4       76.7 GiB  -
    node r2n3  yes       1      7      4       76.7 GiB  -
    node old1  yes       1      4      2       91.4 GiB  -
    node old2  yes       1      3      2       75.3 GiB  -
    node old3  yes       1      3      2       75.3 GiB  -
    feed A     yes       2      7      4       167 GiB   -
    feed B     yes       1      3      2       75.3 GiB  -
    rack r1    no        5      29     5       461 GiB   node r2n1 would not be survived: app-6: no place on any of 8 nodes: 5 cordoned (r1n1); 3 not enough memory (nearest r2n3: needs 16464 MiB of memory, has 9232 MiB free)
    rack r2    no        4      25     5       370 GiB   node r1n1 would not be survived: web-r2n1-1: no place on any of 8 nodes: 3 network's bridge missing (nearest old1: bridge br-dmz missing); 3 cordoned (r2n1); 2 not enough memory (nearest r1n2: needs 4228 MiB of memory, has 1224 MiB free)
    "#);
}

#[tokio::test]
async fn many_nodes_are_emptied_the_oldest_first() {
    let tamdao = two_racks();
    assert_snapshot!(tamdao.story("simulate consolidate --cluster c --oldest-first --count 2 --guarded node").await, @r#"
    exit code: 0
    ----- stdout -----
    ROUND  VM             FROM  TO    HOW   COPIES    WHY
    1      legacy-old2-1  old2  r1n1  live  16.1 GiB  empties old2
    1      legacy-old2-2  old2  r1n1  live  16.1 GiB  empties old2
    2      legacy-old3-1  old3  r1n1  live  16.1 GiB  empties old3
    2      legacy-old3-2  old3  r1n1  live  16.1 GiB  empties old3
    3      scratch-old2   old2  r1n1  live  43.2 GiB  empties old2
    3      scratch-old3   old3  r1n1  live  43.2 GiB  empties old3

    Nodes before and after (# stays, + comes, - goes, . is free)
      NODE       CPU                                MEMORY                             VMS
      old2       [---.................]  15 > 0 %   [-----...............]  29 > 0 %   3 > 0
      old3       [---.................]  15 > 0 %   [-----...............]  29 > 0 %   3 > 0
      r1n1       [#####++++...........]  29 > 45 %  [###########++++++...]  56 > 85 %  8 > 14
      all nodes  [####................]  20 %       [#######.............]  37 %       54
    ----- stderr -----
    6 nodes stay as they are
    2 nodes emptied: old2, old3
    6 moves in 3 rounds, 151 GiB to copy
    "#);
    assert_snapshot!(tamdao.story("simulate consolidate old9 --cluster c").await, @r#"
    exit code: 2
    ----- stderr -----
    error: no node is named "old9"; known: r1n1, r1n2, r1n3, r2n1, r2n2, r2n3, old1, old2, old3
    "#);
    let report = tamdao.json("simulate consolidate feed=A --cluster c -o json").await;
    assert_eq!(report["emptied"], serde_json::json!(["old1", "old2"]));
    let plan = tamdao.output("simulate consolidate --cluster c --count 1 -o text").await;
    assert!(String::from_utf8_lossy(&plan.stdout).starts_with("tamdao-plan 1\nround\nmove "));
}

#[tokio::test]
async fn load_is_evened_out_and_the_measure_is_told() {
    let tamdao = two_racks();
    assert_snapshot!(tamdao.story("simulate balance --cluster c --at-most 3 --guarded node").await, @r#"
    exit code: 0
    ----- stdout -----
    ROUND  VM      FROM  TO    HOW   COPIES    WHY
    1      app-1   r1n1  old2  live  16.1 GiB  evens out load
    1      app-13  r2n1  old3  live  16.1 GiB  evens out load
    1      app-2   r1n1  r1n2  live  16.1 GiB  evens out load

    Nodes before and after (# stays, + comes, - goes, . is free)
      NODE       CPU                                MEMORY                             VMS
      old2       [###+................]  15 > 21 %  [#####+++............]  29 > 41 %  3 > 4
      old3       [###+................]  15 > 21 %  [#####+++............]  29 > 41 %  3 > 4
      r1n1       [####-...............]  29 > 23 %  [########---.........]  56 > 43 %  8 > 6
      r1n2       [###+................]  17 > 20 %  [######+.............]  30 > 36 %  7 > 8
      r2n1       [#####...............]  29 > 26 %  [#########--.........]  56 > 49 %  8 > 7
      all nodes  [####................]  20 %       [#######.............]  37 %       54
    ----- stderr -----
    4 nodes stay as they are
    the farthest node is off by 18.22 % before and 11.81 % after
    further moves would be worth it; --at-most ends the plan
    3 moves in 1 round, 48.2 GiB to copy
    "#);
    assert_snapshot!(tamdao.story("simulate balance --cluster c --threshold 60").await, @r#"
    exit code: 0
    ----- stdout -----

    Nodes before and after (# stays, + comes, - goes, . is free)
      NODE       CPU                           MEMORY                        VMS
      all nodes  [####................]  20 %  [#######.............]  37 %  54
    ----- stderr -----
    nothing has to move
    9 nodes stay as they are
    the farthest node is off by 18.22 % before and 18.22 % after
    no node is further off than the threshold
    nothing moves
    "#);
    let report = tamdao.json("simulate balance --cluster c -o json").await;
    assert_eq!(report["outcome"], "best");
    assert!(report["farthest_after"].as_f64() < report["farthest_before"].as_f64());
}

#[tokio::test]
async fn a_disk_that_holds_a_vm_is_named_and_so_is_missing_room() {
    let tamdao = Tamdao::new(&[]);
    let text = "tamdao-cluster 1
pool fast local
node n1 vcpus=16 memory=65536 pool.fast=100000/20000
node n2 vcpus=16 memory=65536 pool.fast=100000
vm db on=n1 vcpus=4 memory=16384 disk.fast=20000@n1 pin=n1
vm big on=n2 vcpus=14 memory=16384
";
    tamdao.file("c", text.as_bytes());
    assert_snapshot!(tamdao.story("simulate maintain --cluster c").await, @r#"
    exit code: 1
    ----- stdout -----
    EMPTIED  POSSIBLE  NODES  MOVES  ROUNDS  COPIES  MISSING
    node n1  no        1      0      0       0 MiB   db stays on n1: no place on any of 2 nodes: 1 its disk is on another node (nearest n2: its disk is in pool fast of another node); 1 cordoned (n1); would help: copy its disk of pool fast to n2, or keep it in a shared pool and free 2 vCPUs on n2
    node n2  no        1      0      0       0 MiB   big stays on n2: no place on the only node: 1 not enough vCPUs (nearest n1: needs 14 vCPUs, has 12 free); would help: free 2 vCPUs on n1; enough would be 14 vCPUs, 16 GiB more on 1 node like n1
    "#);
    let output = tamdao.output("simulate maintain --each node --cluster c -o json").await;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report[1]["enough"][0]["vcpus"], 14);
    assert_eq!(report[0]["enough"], serde_json::json!([]));
}

#[tokio::test]
async fn weights_are_a_table() {
    let tamdao = four_nodes();
    assert_snapshot!(tamdao.story("simulate weights --cluster c").await, @r#"
    exit code: 0
    ----- stdout -----
    PART      WEIGHT  DEFAULT  MEASURES
    tight     5       5        how little stays free on the node of CPU, memory and local disk, most of what is scarce
    even      20      20       how much more alike the VM makes what stays free of CPU and of memory, so that neither is stranded
    in-use    4       4        whether the node has VMs already, so that empty nodes stay empty
    held      2       2        how many VMs hold the node, so that one with few is left to empty by itself
    support   2       2        how late the node's hardware support ends among the cluster's, so that old hardware stays free
    apart     20      20       how few members of its groups that spread are in the same node or domain
    together  20      20       whether preferred companions are in the same node or domain
    "#);
}

#[tokio::test]
async fn a_wrong_word_is_named_with_the_right_ones() {
    let tamdao = four_nodes();
    let mut all = String::new();
    for what_if in [
        "node n9 down",
        "node n1 up",
        "rock r1 down",
        "rack r9 cordon",
        "add many m",
        "add 0 m",
        "add 3 xxl",
        "n1 down",
    ] {
        let story = tamdao.story(&format!("simulate place --cluster c --what-if '{what_if}'")).await;
        all.push_str(&story);
    }
    assert_snapshot!(all, @r#"
    exit code: 2
    ----- stderr -----
    error: --what-if 'node n9 down': no node is named "n9"; known: n1, n2, n3, n4
    exit code: 2
    ----- stderr -----
    error: --what-if 'node n1 up': "up" is no change; known: down, cordon, uncordon
    exit code: 2
    ----- stderr -----
    error: --what-if 'rock r1 down': "rock" is no subject; known: node, rack
    exit code: 2
    ----- stderr -----
    error: --what-if 'rack r9 cordon': no rack is named "r9"; known: r1, r2
    exit code: 2
    ----- stderr -----
    error: --what-if 'add many m': "many" is no count; expected a whole number from 1 to 1000000
    exit code: 2
    ----- stderr -----
    error: --what-if 'add 0 m': "0" is no count; expected a whole number from 1 to 1000000
    exit code: 2
    ----- stderr -----
    error: --what-if 'add 3 xxl': no flavor is named "xxl"; known: s, m, l
    exit code: 2
    ----- stderr -----
    error: --what-if 'n1 down': expected SUBJECT NAME CHANGE, such as "node n7 down", or "add COUNT FLAVOR"
    "#);
    tamdao.file("wrong", b"tamdao-cluster 1\nnode n1 vcpus=many\n");
    assert_snapshot!(tamdao.story("simulate fit --cluster wrong").await, @r#"
    exit code: 2
    ----- stderr -----
    error: wrong: line 2, column 9: "many" is not a whole number that fits

    hint: the format is described in docs/operations/cluster-text-format.md
    "#);
    assert_snapshot!(tamdao.story("simulate fit --cluster nowhere").await, @r#"
    exit code: 2
    ----- stderr -----
    error: nowhere cannot be read: No such file or directory (os error 2)
    "#);
    assert_snapshot!(tamdao.story("simulate survive --cluster c --guarded rock").await, @r#"
    exit code: 2
    ----- stderr -----
    error: --guarded: "rock" is no subject; known: node, rack
    "#);
}

#[tokio::test]
async fn the_live_cluster_is_dumped_and_forked() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    let text = std::fs::read_to_string(format!("{EXAMPLES}four-nodes.cluster")).unwrap();
    fake.world().dump = text.split_inclusive('\n').map(str::to_owned).collect();
    let dumped = tamdao.output("debug dump").await;
    assert!(dumped.status.success());
    assert_eq!(String::from_utf8_lossy(&dumped.stdout), text);
    assert_snapshot!(tamdao.story("debug dump f").await, @r#"
    exit code: 0
    ----- stderr -----
    f: written, 1.6 KiB
    "#);
    assert_eq!(std::fs::read_to_string(tamdao.folder.path().join("f")).unwrap(), text);
    assert_snapshot!(tamdao.story("debug dump f").await, @r#"
    exit code: 1
    ----- stderr -----
    error: f cannot be written: File exists (os error 17)

    hint: take another name, or add --force
    "#);
    assert!(tamdao.output("debug dump f --force").await.status.success());
    let live = tamdao.story("simulate place").await;
    assert_eq!(live, tamdao.story("simulate place --cluster f").await);
}
