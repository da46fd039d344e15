//! The transitions: the table of the module, row by row.

use super::{Directed, Epoch, Event, Gate, Interface, Lineage, Order, Quiet, Refusal, State};

impl Gate {
    /// Takes an event; orders are appended in the order in which the kernel shall get them. Refused:
    /// nothing has changed and nothing is ordered.
    pub fn step(
        &mut self,
        event: Event,
        now_ms: u64,
        orders: &mut Vec<Directed>,
    ) -> Result<(), Refusal> {
        let next = match event {
            Event::Cut { epoch, drained } => self.cut_epoch(epoch, drained, orders)?,
            Event::Release(epoch) => self.release(epoch, orders)?,
            Event::Hold { why } => self.hold(why, orders),
            Event::Authority(lineage) => {
                self.authority = Some(lineage);
                None
            }
            Event::Open(lineage) => self.open(lineage, orders)?,
            Event::Resync { epoch, quiet } => Some(self.resync(epoch, quiet, orders)?),
            Event::Added(interface) => {
                self.added(interface, orders)?;
                None
            }
            Event::Gone(interface) => {
                self.forget(interface)?;
                self.after_leaving(interface)
            }
            Event::Detached(interface) => {
                self.forget(interface)?;
                orders.push(Directed {
                    to: interface,
                    order: Order::Shut,
                });
                self.after_leaving(interface)
            }
            Event::Restarted(found) => Some(self.restarted(found, orders)?),
            Event::Limit { bytes } => {
                self.limit(bytes, orders)?;
                None
            }
            Event::OrderFailed { of, what } => self.failed(of, what, orders),
        };
        if let Some(next) = next {
            self.state = next;
            self.since_ms = now_ms;
        }
        Ok(())
    }

    fn all(&self, order: Order, orders: &mut Vec<Directed>) {
        orders.extend(self.interfaces.iter().map(|&to| Directed { to, order }));
    }

    /// Refuses what a held or failed gate does not do.
    fn running(&self, what: &'static str) -> Result<(), Refusal> {
        match &self.state {
            State::Open | State::Holding { .. } | State::Cut { .. } => Ok(()),
            State::Held { why } => Err(Refusal::Held {
                what,
                why: why.clone(),
            }),
            State::Adopted => Err(Refusal::Held {
                what,
                why: "found after a restart".into(),
            }),
            State::Failed { .. } => self.not_failed(what),
        }
    }

    fn not_failed(&self, what: &'static str) -> Result<(), Refusal> {
        match &self.state {
            State::Failed { of, why } => Err(Refusal::Failed {
                what,
                of: *of,
                why: why.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn cut_epoch(
        &mut self,
        asked: Epoch,
        drained: bool,
        orders: &mut Vec<Directed>,
    ) -> Result<Option<State>, Refusal> {
        self.running("CUT")?;
        let mut epochs = match &self.state {
            State::Cut { epochs } => epochs.clone(),
            _ => Vec::new(),
        };
        if let Some(&unreleased) = epochs.first().filter(|_| epochs.len() >= self.capacity) {
            return Err(match self.capacity {
                1 => Refusal::Unreleased { asked, unreleased },
                capacity => Refusal::Full {
                    asked,
                    capacity,
                    unreleased,
                },
            });
        }
        if let Some(last) = self.cut.filter(|last| asked <= *last) {
            return Err(Refusal::NotNewer { asked, last });
        }
        if asked.0 == u64::MAX {
            return Err(Refusal::Exhausted(asked));
        }
        if self.state == State::Open && !drained {
            return Err(Refusal::NotDrained(asked));
        }
        self.all(Order::Buffer(asked), orders);
        self.cut = Some(asked);
        epochs.push(asked);
        Ok(Some(State::Cut { epochs }))
    }

    fn release(
        &mut self,
        asked: Epoch,
        orders: &mut Vec<Directed>,
    ) -> Result<Option<State>, Refusal> {
        self.running("RELEASE")?;
        let State::Cut { epochs } = &self.state else {
            return Err(match self.cut {
                Some(last) if asked <= last => Refusal::AlreadyOut { asked, last },
                _ => Refusal::NotCut { asked },
            });
        };
        let Some(at) = epochs.iter().position(|epoch| *epoch == asked) else {
            let waits = *epochs.first().expect("never empty");
            return Err(if asked < waits {
                let last = asked;
                Refusal::AlreadyOut { asked, last }
            } else {
                Refusal::OtherEpoch { asked, waits }
            });
        };
        let left = epochs[at + 1..].to_vec();
        self.all(Order::ReleaseOne(asked), orders);
        Ok(Some(if left.is_empty() {
            State::Holding {
                epoch: Epoch(asked.0 + 1),
            }
        } else {
            State::Cut { epochs: left }
        }))
    }

    fn hold(&mut self, why: String, orders: &mut Vec<Directed>) -> Option<State> {
        match self.state {
            State::Open => {
                self.all(Order::Freeze, orders);
                Some(State::Held { why })
            }
            // They hold already, and nothing is released from here.
            State::Holding { .. } | State::Cut { .. } | State::Adopted => Some(State::Held { why }),
            State::Held { .. } | State::Failed { .. } => None,
        }
    }

    fn open(
        &mut self,
        asked: Lineage,
        orders: &mut Vec<Directed>,
    ) -> Result<Option<State>, Refusal> {
        self.not_failed("OPEN")?;
        match self.authority {
            None => return Err(Refusal::NoAuthority { asked }),
            Some(authority) if authority != asked => {
                return Err(Refusal::OtherLineage { asked, authority });
            }
            Some(_) => {}
        }
        if self.state == State::Open {
            return Ok(None);
        }
        self.all(Order::OpenAll, orders);
        Ok(Some(State::Open))
    }

    fn resync(
        &mut self,
        asked: Epoch,
        quiet: Quiet,
        orders: &mut Vec<Directed>,
    ) -> Result<State, Refusal> {
        self.not_failed("RESYNC")?;
        if !matches!(self.state, State::Held { .. } | State::Adopted) {
            return Err(Refusal::NothingToResync(asked));
        }
        if !quiet.paused {
            return Err(Refusal::NotPaused(asked));
        }
        if quiet.committed.is_none_or(|committed| committed < asked) {
            return Err(Refusal::NotCommitted(asked));
        }
        if let Some(last) = self.cut.filter(|last| asked < *last) {
            return Err(Refusal::Older { asked, last });
        }
        if quiet.backlog_frames != Some(0) {
            return Err(Refusal::NotEmpty(asked));
        }
        let epoch = Epoch(asked.0.checked_add(1).ok_or(Refusal::Exhausted(asked))?);
        for &to in &self.interfaces {
            for order in [Order::OpenAll, Order::Count] {
                orders.push(Directed { to, order });
            }
        }
        self.cut = Some(asked);
        Ok(State::Holding { epoch })
    }

    fn added(&mut self, interface: Interface, orders: &mut Vec<Directed>) -> Result<(), Refusal> {
        if !self.interfaces.insert(interface) {
            return Err(Refusal::Known(interface));
        }
        let mut order = |order| {
            orders.push(Directed {
                to: interface,
                order,
            });
        };
        order(Order::Limit {
            bytes: self.limit_bytes,
        });
        // In every other state it stays as it was born: holding, counting the epoch that runs.
        if self.state == State::Open {
            order(Order::OpenAll);
        }
        Ok(())
    }

    fn forget(&mut self, interface: Interface) -> Result<(), Refusal> {
        if self.interfaces.remove(&interface) {
            Ok(())
        } else {
            Err(Refusal::Unknown(interface))
        }
    }

    /// A failure leaves with its interface; what the others hold has lost its place in the sequence.
    fn after_leaving(&mut self, interface: Interface) -> Option<State> {
        let why = self.broken.remove(&interface)?;
        Some(match self.broken.first_key_value() {
            Some((of, why)) => State::Failed {
                of: *of,
                why: why.clone(),
            },
            None => State::Held {
                why: format!("{interface} failed and left ({why})"),
            },
        })
    }

    fn restarted(
        &mut self,
        found: Vec<Interface>,
        orders: &mut Vec<Directed>,
    ) -> Result<State, Refusal> {
        if self.state != State::Open || !self.interfaces.is_empty() || self.cut.is_some() {
            return Err(Refusal::InUse);
        }
        self.interfaces.extend(found);
        self.all(Order::Freeze, orders);
        Ok(State::Adopted)
    }

    fn limit(&mut self, bytes: u32, orders: &mut Vec<Directed>) -> Result<(), Refusal> {
        if bytes == 0 {
            return Err(Refusal::NoLimit);
        }
        self.limit_bytes = bytes;
        self.all(Order::Limit { bytes }, orders);
        Ok(())
    }

    fn failed(&mut self, of: Interface, why: String, orders: &mut Vec<Directed>) -> Option<State> {
        // It went while the order was on its way.
        if !self.interfaces.contains(&of) {
            return None;
        }
        orders.push(Directed {
            to: of,
            order: Order::Shut,
        });
        // The guest is one: while one interface says nothing, the others are not left open.
        if self.state == State::Open {
            let others = self.interfaces.iter().filter(|other| **other != of);
            orders.extend(others.map(|&to| Directed {
                to,
                order: Order::Freeze,
            }));
        }
        self.broken.entry(of).or_insert_with(|| why.clone());
        match self.state {
            State::Failed { .. } => None,
            _ => Some(State::Failed { of, why }),
        }
    }
}
