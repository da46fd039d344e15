//! `sim`: runs seeds of the simulator.

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let from: u64 = args[1].parse().unwrap_or(0);
    let count: u64 = args[2].parse().unwrap_or(1);
    let trace = args.len() > 3;
    let began = std::time::Instant::now();
    let mut bad = 0;
    for seed in from..from + count {
        eprintln!("seed {seed}");
        let (stats, result) = blockrep_tests::sim::run(seed, trace);
        if let Err(text) = result {
            println!("seed {seed}: {text}");
            bad += 1;
        }
        if trace {
            println!("{stats:?}");
        }
    }
    println!("{bad} bad of {count}, {:?}", began.elapsed());
}
