//! Writes what a node does with each operation, and tells the binary which commit it was built from, for `trefoil version` and
//! the metric `trefoil_build_info`.

use std::process::Command;

use trefoil_codegen::{Contract, ContractError, server, server_calls, server_services, write};

fn main() -> Result<(), ContractError> {
    println!("cargo:rerun-if-changed=../proto");
    let contract = Contract::read("../proto")?;
    write("operations.rs", server(&contract)?)?;
    write("services.rs", server_services(&contract))?;
    write("calls.rs", server_calls(&contract))?;
    commit();
    Ok(())
}

fn commit() {
    println!("cargo:rerun-if-env-changed=TREFOIL_COMMIT");
    // The log of HEAD grows with every commit and every checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        .filter(|log| std::path::Path::new(log).exists())
    {
        println!("cargo:rerun-if-changed={log}");
    } else {
        println!("cargo:rerun-if-changed=build.rs");
    }
    // An image is built without the repository and passes the commit in.
    let given = std::env::var("TREFOIL_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(|| git(&["rev-parse", "--short=12", "HEAD"]));
    println!("cargo:rustc-env=TREFOIL_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}
