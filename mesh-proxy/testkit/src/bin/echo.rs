//! The test application: answers with what it received, and calls its like.

use clap::{CommandFactory as _, Parser, Subcommand};
use mesh_testkit::echo::{
    call::{CallArgs, call},
    forward::{ForwardArgs, forward},
    pipe::{PipeArgs, pipe},
    serve::{ServeArgs, serve},
};

/// A test application for many protocols, and a client for it.
#[derive(Debug, Parser)]
#[command(name = "echo", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serves until SIGTERM
    Serve(ServeArgs),
    /// Calls a URL once or many times
    #[command(args_override_self = true)]
    Call(CallArgs),
    /// Hands datagrams on to another address, and answers back
    Forward(ForwardArgs),
    /// Standard input and output as one TCP connection
    Pipe(PipeArgs),
    /// Prints shell completion
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match (cli.verb, runtime) {
        (Verb::Completion { shell }, _) => {
            clap_complete::generate(shell, &mut Cli::command(), "echo", &mut std::io::stdout());
            Ok(true)
        }
        (_, Err(error)) => Err(error.into()),
        (Verb::Serve(args), Ok(runtime)) => {
            let result = runtime.block_on(serve(args)).map(|()| true);
            runtime.shutdown_timeout(std::time::Duration::from_millis(100));
            result
        }
        (Verb::Forward(args), Ok(runtime)) => runtime.block_on(forward(args)).map(|()| true),
        (Verb::Pipe(args), Ok(_)) => pipe(&args).map(|()| true),
        (Verb::Call(args), Ok(runtime)) => {
            let result = runtime.block_on(call(args));
            runtime.shutdown_timeout(std::time::Duration::from_millis(100));
            result
        }
    };
    match result {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(error) => {
            eprintln!("echo: {error:#}");
            std::process::ExitCode::from(2)
        }
    }
}
