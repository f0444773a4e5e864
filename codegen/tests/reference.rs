//! `docs/reference.md` is what the contract says.

use std::path::Path;

use trefoil_codegen::{Contract, reference};

#[test]
fn the_page_of_operations_says_what_the_contract_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in the workspace");
    let page = reference(&Contract::read(root.join("proto")).expect("the contract is whole"));
    let path = root.join("docs/reference.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("the page can be written");
    }
    let there = std::fs::read_to_string(&path).expect("the page is there");
    assert!(
        there == page,
        "docs/reference.md is out of date: UPDATE_DOCS=1 cargo test -p trefoil-codegen"
    );
}
