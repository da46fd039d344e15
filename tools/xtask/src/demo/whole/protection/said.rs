//! What the checkpointers say, as the round and the report want it. Pure.
//!
//! Events are those of `blkback-proto/PROTOCOL.md` §2; a checkpoint's figures are `guest-timeline`'s.

use serde_json::{Value, json};

use super::Takeover;

/// The steps of a pause.
const STEPS: [&str; 7] = [
    "stop",
    "disk_cut",
    "scan",
    "copy",
    "device_state",
    "output_cut",
    "cont",
];

/// When the standby took over, from its events: one JSON a line, each whole or in `{"event": …}`.
pub(super) fn takeover(events: &str) -> Takeover {
    let mut takeover = Takeover::default();
    for line in events.lines() {
        let Ok(one) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let one = one.get("event").unwrap_or(&one);
        let at = one["unix_ms"].as_u64().map(|ms| ms * 1_000_000);
        match one["new_state"].as_str() {
            Some("lost") => takeover.detected_unix_ns = at,
            Some("promoting") => takeover.promoted_unix_ns = at,
            Some("promoted") => takeover.running_unix_ns = at,
            _ => {}
        }
        if one["kind"] == "guest-promoted" {
            let number = |name: &str| one["detail"][name].as_str()?.parse().ok();
            takeover.epoch = number("epoch");
            takeover.clock_behind_ms = number("clock_behind_ms");
        }
    }
    takeover
}

/// Checkpoints of `guest timeline` for the report; what was given up is none.
pub(super) fn epochs(told: &[Value]) -> Vec<Value> {
    let whole = told.iter().filter(|one| one["given_up"].is_null());
    let told = whole.filter_map(|one| {
        let steps: serde_json::Map<String, Value> = STEPS
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), one["us"].get(*name)?.clone())))
            .collect();
        Some(json!({
            "epoch": one["epoch"],
            "cut_unix_ns": one["unix_ms"].as_u64()? * 1_000_000,
            "pause_us": one["us"]["pause"].as_u64()?,
            "steps": steps,
            "bytes": one["wire_bytes"],
            "pages": one["dirty_pages"],
            "zero_pages": one["zero_pages"],
        }))
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    //! A time that is taken from the wrong event would make an outage look short.

    use super::*;

    #[test]
    fn the_states_of_the_standby_give_the_times() {
        let events = "{\"seq\":1,\"unix_ms\":5,\"kind\":\"guest-protection\",\"new_state\":\"following\"}\n\
            {\"seq\":2,\"unix_ms\":100,\"kind\":\"guest-protection\",\"new_state\":\"lost\"}\n\
            {\"event\":{\"seq\":3,\"unix_ms\":110,\"kind\":\"guest-protection\",\"new_state\":\"promoting\"}}\n\
            no json\n\
            {\"seq\":4,\"unix_ms\":130,\"kind\":\"guest-protection\",\"new_state\":\"promoted\"}\n\
            {\"seq\":5,\"unix_ms\":130,\"kind\":\"guest-promoted\",\"detail\":{\"epoch\":\"77\",\"clock_behind_ms\":\"480\"}}\n";
        let expected = Takeover {
            detected_unix_ns: Some(100_000_000),
            promoted_unix_ns: Some(110_000_000),
            running_unix_ns: Some(130_000_000),
            epoch: Some(77),
            clock_behind_ms: Some(480),
        };
        assert_eq!(takeover(events), expected);
        assert_eq!(takeover(""), Takeover::default());
    }

    #[test]
    fn checkpoints_that_were_given_up_are_none() {
        let one = |epoch: u64| json!({"epoch": epoch, "unix_ms": 9, "dirty_pages": 3, "zero_pages": 1, "wire_bytes": 4096, "us": {"stop": 700, "pause": 5000, "send": 9}});
        let mut given_up = one(2);
        given_up["given_up"] = json!("late");
        let told = epochs(&[one(1), given_up]);
        let expected = json!({"epoch": 1, "cut_unix_ns": 9_000_000, "pause_us": 5000, "steps": {"stop": 700}, "bytes": 4096, "pages": 3, "zero_pages": 1});
        assert_eq!(told, [expected]);
        assert!(epochs(&[]).is_empty());
    }
}
