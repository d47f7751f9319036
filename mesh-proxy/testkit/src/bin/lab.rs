//! Closed test networks on one machine.

fn main() {
    std::process::exit(mesh_testkit::lab::cli::main());
}
